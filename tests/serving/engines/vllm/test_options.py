"""The command line of vLLM, on a CPU and on a GPU."""

import json
from dataclasses import replace

import pytest

from tuneline.serving.engines import get_engine
from tuneline.serving.engines.server import ServeRequest
from tuneline.serving.engines.vllm import launch
from tuneline.serving.engines.vllm.launch import kv_cache_bytes, lora_rank, serve_options


@pytest.fixture
def asked(tiny_dir):
    return ServeRequest(tiny_dir, "m", 4, 512)


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(launch, "is_cpu_build", lambda: True)


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(launch, "is_cpu_build", lambda: False)


def adapter(folder, **config):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_a_gpu_computes_in_the_type_of_the_checkpoint(asked, on_gpu):
    options = serve_options(asked)
    assert options["--dtype"] == "auto"
    assert "--enforce-eager" not in options
    assert "--kv-cache-memory-bytes" not in options
    assert "--enable-prefix-caching" in options


def test_a_cpu_computes_in_float32_with_a_bounded_cache(asked, on_cpu):
    options = serve_options(asked)
    assert options["--dtype"] == "float32"
    assert "--enforce-eager" in options
    assert options["--kv-cache-memory-bytes"] == kv_cache_bytes(asked, "float32")


def test_a_quantised_checkpoint_is_computed_in_16_bits(asked, on_cpu, tmp_path):
    config = json.loads((asked.model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert serve_options(replace(asked, model=tmp_path))["--dtype"] == "bfloat16"


def test_the_cache_holds_every_slot_twice(asked):
    # Two layers, two key-value heads of 16, four bytes, keys and values, blocks of 128 tokens.
    block = 2 * 2 * 2 * 16 * 4 * 128
    assert kv_cache_bytes(asked, "float32") == (4 * 4 * 2 + 1) * block
    assert kv_cache_bytes(replace(asked, context_tokens=513), "float32") == (4 * 5 * 2 + 1) * block
    assert kv_cache_bytes(asked, "bfloat16") == (4 * 4 * 2 + 1) * block // 2


@pytest.mark.parametrize(("rank", "given"), [(1, 1), (5, 8), (16, 16), (257, 320), (600, 600)])
def test_the_rank_is_rounded_up_to_one_that_vllm_takes(asked, on_cpu, tmp_path, rank, given):
    adapters = {"a": adapter(tmp_path / "a", r=1), "b": adapter(tmp_path / "b", r=rank)}
    options = serve_options(replace(asked, adapters=adapters))
    assert options["--max-lora-rank"] == given
    assert options["--max-loras"] == 2
    command = get_engine("vllm").command(replace(asked, adapters=adapters))
    at = command.index("--lora-modules")
    assert command[at + 1 :] == [f"{name}={path}" for name, path in adapters.items()]


def test_the_rank_of_a_single_module_counts(tmp_path):
    assert lora_rank(adapter(tmp_path / "a", r=4, rank_pattern={"q_proj": 12})) == 12


def test_the_command_runs_in_this_environment(asked, on_gpu):
    command = get_engine("vllm").command(asked)
    assert "tuneline.serving.engines.vllm.launch" in command
    assert "" not in command
    assert command[command.index("--max-model-len") + 1] == "512"
    assert command[command.index("--max-num-seqs") + 1] == "4"
    assert command[command.index("--served-model-name") + 1] == "m"
