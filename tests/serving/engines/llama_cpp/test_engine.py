"""The llama.cpp engine: what it can serve, and a server that hangs."""

import json
import shutil
import signal
import time

from tests.lab.tiny_models import make_tokenizer

from tuneline.serving.engines import get_engine
from tuneline.serving.engines.base import read_facts
from tuneline.serving.engines.llama_cpp.engine import LlamaServer
from tuneline.serving.probes.engine_probe import live, ready

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


def test_a_hung_engine_is_not_ready(tiny_gguf):
    with LlamaServer(tiny_gguf, alias="tiny") as server:
        assert ready(server.base_url, 5.0, "tiny").ok
        assert ready(server.base_url, 5.0, "another").reason == "it serves tiny, not another"
        server.signal(signal.SIGSTOP)
        started = time.monotonic()
        assert not ready(server.base_url, 0.5).ok
        assert not live(server.base_url, 0.5).ok
        assert time.monotonic() - started < 5
        server.signal(signal.SIGCONT)
        assert ready(server.base_url, 5.0).ok
