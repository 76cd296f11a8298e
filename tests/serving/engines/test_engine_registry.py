"""Every engine answers the same questions; tables are right about the models we use."""

import json
import sys

import pytest

from tuneline.artifacts.deployment import EngineIdentity
from tuneline.errors import UserError
from tuneline.machine.cores import available_cores
from tuneline.serving.engines import ENGINE_NAMES, all_engines, get_engine
from tuneline.serving.engines import engine as engine_module
from tuneline.serving.engines.engine import BuildRequest, known_architectures, read_facts
from tuneline.serving.engines.server import (
    ServedSizes,
    ServeRequest,
    largest,
    served_sizes,
    threads_here,
)


def facts(tmp_path, **config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_facts(tmp_path)


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_a_llama_is_known_everywhere_and_an_invented_one_nowhere(name, tiny_dir, tmp_path):
    found = get_engine(name).check(read_facts(tiny_dir))
    assert found.engine == name
    assert found.compatible, found.reason
    assert found.source
    found = get_engine(name).check(facts(tmp_path, architectures=["NovelForCausalLM"]))
    assert not found.compatible
    assert "NovelForCausalLM" in found.reason


def test_there_is_no_such_engine():
    with pytest.raises(UserError, match="'onnx': use one of llama_cpp, vllm"):
        get_engine("onnx")
    assert [engine.name for engine in all_engines()] == list(ENGINE_NAMES)


def test_an_installed_engine_is_asked_itself(tmp_path, monkeypatch):
    package = tmp_path / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text(
        "class ModelRegistry:\n"
        "    @staticmethod\n"
        "    def get_supported_archs():\n"
        "        return ['NovelForCausalLM']\n"
        "print('INFO a notice of its own')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    known_architectures.cache_clear()
    try:
        known, source, live = known_architectures("vllm")
        assert known == {"NovelForCausalLM"}
        assert live
        assert source == "the model registry of the installed vllm"
        (package / "__init__.py").write_text("raise ImportError('no CUDA')\n")
        known_architectures.cache_clear()
        known, source, live = known_architectures("vllm")
        assert "LlamaForCausalLM" in known
        assert not live
    finally:
        known_architectures.cache_clear()
        sys.modules.pop("vllm", None)


def test_the_table_holds_every_engine_but_ours():
    table = json.loads(engine_module._TABLE.read_text())
    assert set(table) == set(ENGINE_NAMES) - {"llama_cpp"}


def test_vllm_no_longer_loads_gguf(tmp_path):
    quantised = {"quantization_config": {"quant_method": "gguf"}}
    model = facts(tmp_path, architectures=["LlamaForCausalLM"], **quantised)
    assert "no longer loads GGUF" in get_engine("vllm").check(model).reason


@pytest.mark.parametrize("name", ["llama_cpp", "vllm", "sglang", "tgi"])
def test_what_can_not_be_built_or_started(name, tiny_dir, tmp_path):
    engine = get_engine(name)
    with pytest.raises(UserError, match=f"{name}: nothing is built"):
        engine.build(BuildRequest(tiny_dir, tmp_path))
    if name in ("sglang", "tgi"):
        assert "can't be started by a run" in engine.missing()
        with pytest.raises(UserError, match="can't be started by a run"):
            engine.server(ServeRequest(tiny_dir, "m", 1, 512))


def test_what_a_server_was_started_with_counts_and_not_what_was_built():
    built = {"max_batch_size": 8, "max_total_tokens": 4096}
    started = ServedSizes(2, 512, 1)
    stated = EngineIdentity(engine="tensorrt_llm", limits=built, served=started.as_stated())
    assert served_sizes(stated) == started
    assert served_sizes(EngineIdentity(engine="vllm", limits=built)) == ServedSizes(8, 4096)
    assert served_sizes(EngineIdentity(engine="vllm")) == ServedSizes(2, 2048)


def test_several_releases_on_one_engine_get_the_largest_of_each():
    limits = [ServedSizes(2, 1024, 3), ServedSizes(4, 512), ServedSizes(1, 2048, 1)]
    assert largest(limits) == ServedSizes(4, 2048, 3)
    assert largest(limits[1:2]) == ServedSizes(4, 512, None)


def test_threads_are_the_measured_ones_within_this_machine(monkeypatch):
    monkeypatch.delenv("TUNELINE_THREADS", raising=False)
    assert threads_here(1) == 1
    assert threads_here(10_000) == available_cores()
    assert threads_here(None) is None
    monkeypatch.setenv("TUNELINE_THREADS", "3")
    assert threads_here(1) == 3
