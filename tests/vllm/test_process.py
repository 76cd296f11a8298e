"""vLLM's processes: a hung and a dead engine; starts that fail with their cause."""

import json
import os
import shutil
import threading

import psutil
import pytest
from tests.lab.waiting import wait_for
from tests.vllm.reference import prompts, request, served

from tuneline.errors import UserError
from tuneline.serving.engines import probe as engine_probe
from tuneline.serving.engines.vllm.engine import VllmServer


def group(leader):
    """The living processes of a process group."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == leader and process.info["status"] != "zombie":
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def test_a_hung_and_a_dead_engine(tiny):
    server = VllmServer(request(tiny.base))
    with server:
        url, leader = server.base_url, server.pid
        assert len(group(leader)) >= 4
        # The engine hangs, as with a GPU fault, while its HTTP server answers its health route.
        engine = next(p for p in group(leader) if "EngineCore" in " ".join(p.cmdline()))
        engine.suspend()
        try:
            assert engine_probe.listens(url, 2.0)
            assert engine_probe.live(url, 1.0).reason == "no answer in time"
            asking = threading.Thread(target=served, args=(server, prompts(1)))
            asking.start()
            wait_for(lambda: not engine_probe.live(url, 1.0).ok)
        finally:
            engine.resume()
            asking.join()
        wait_for(lambda: engine_probe.live(url, 5.0).ok)

        # The engine dies: vLLM ends, and nothing of it is left.
        engine.kill()
        wait_for(lambda: not engine_probe.live(url, 2.0).ok)
        wait_for(lambda: not group(leader))
    assert not group(leader)


def test_a_context_beyond_the_models_is_the_users_error(tiny):
    server = VllmServer(request(tiny.base, context_tokens=4096))
    with pytest.raises(UserError, match=r"max_model_len \(4096\) is greater.*context_tokens"):
        server.start()


def test_an_unknown_architecture_is_the_users_error(tiny, tmp_path):
    other = shutil.copytree(tiny.base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps({**config, "architectures": ["NovelForCausalLM"], "model_type": "novel"})
    )
    with pytest.raises(UserError, match=r"model type `novel`.*choose another base model"):
        VllmServer(request(other)).start()


def test_a_head_that_the_cpu_has_no_kernel_for_is_the_users_error(tmp_path):
    from tests.lab.tiny_models import make_model

    make_model(tmp_path / "narrow")
    with pytest.raises(UserError, match=r"head_dim=16.*llama_cpp"):
        VllmServer(request(tmp_path / "narrow", context_tokens=256)).start()
