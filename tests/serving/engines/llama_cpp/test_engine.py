"""The llama.cpp engine behind the common interface."""

import json
import shutil
import signal
import subprocess
import time

import pytest
from tests.lab.tiny_models import make_tokenizer

from tuneline.errors import UserError
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.base import BuildRequest, ServeRequest, read_facts
from tuneline.serving.engines.llama_cpp.engine import LlamaServer, _environment

ENGINE = get_engine("llama_cpp")


def test_check(tiny_dir, tmp_path):
    found = ENGINE.check(read_facts(tiny_dir))
    assert found.compatible
    assert found.live
    assert "pre-tokenizer smollm" in found.reason
    other = shutil.copytree(tiny_dir, tmp_path / "other")
    make_tokenizer("unknown", other)
    found = ENGINE.check(read_facts(other))
    assert not found.compatible
    assert "wrong token ids" in found.reason
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["XForCausalLM"]}))
    assert "XForCausalLM" in ENGINE.check(read_facts(other)).reason


def test_build_and_serve(tiny_dir, tmp_path):
    report = ENGINE.build(BuildRequest(tiny_dir, tmp_path, quantization="q8_0", max_batch_size=2))
    assert report.built
    assert set(report.identity["files"]) == {"model-q8_0.gguf"}
    assert report.identity["limits"]["max_batch_size"] == 2
    assert report.identity["version"].startswith("xllamacpp 20")
    json.dumps(report.to_dict())
    request = ServeRequest(
        tmp_path / "model-q8_0.gguf", alias="tiny", port=0, max_batch_size=2, max_total_tokens=256
    )
    process = subprocess.Popen(
        ENGINE.command(request), stdout=subprocess.PIPE, env=_environment(), text=True
    )
    try:
        address = process.stdout.readline().removeprefix("listening at ").strip()
        health = ENGINE.health(address, model="tiny")
        assert (health.live, health.ready) == (True, True)
        health = ENGINE.health(address, model="another")
        assert (health.live, health.ready) == (True, False)
        assert health.reason == "it serves tiny, not another"
    finally:
        process.terminate()
        assert process.wait(20) == 0
        process.stdout.close()
    health = ENGINE.health(address, model="tiny")
    assert (health.live, health.ready) == (False, False)


def test_a_hung_engine_is_not_ready(tiny_gguf):
    with LlamaServer(tiny_gguf) as server:
        assert ENGINE.health(server.base_url).ready
        server.signal(signal.SIGSTOP)
        started = time.monotonic()
        health = ENGINE.health(server.base_url, timeout=0.5)
        assert not health.ready
        assert not health.live
        assert time.monotonic() - started < 5
        server.signal(signal.SIGCONT)
        assert ENGINE.health(server.base_url).ready


def test_an_unknown_quantisation(tiny_dir, tmp_path):
    with pytest.raises(UserError, match="'awq': use f16 or one of q8_0"):
        ENGINE.build(BuildRequest(tiny_dir, tmp_path, quantization="awq"))
