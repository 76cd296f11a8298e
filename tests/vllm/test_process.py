"""vLLM's processes: hung, killed, ended with their parent; starts that fail with their cause."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from tests.lab.waiting import wait_for
from tests.vllm.reference import prompts, request

from tuneline.errors import RetryableError, UserError
from tuneline.machine.child_environment import child_environment
from tuneline.serving.engines import probe as engine_probe
from tuneline.serving.engines.vllm.engine import VllmServer
from tuneline.serving.processes import free_port

ROOT = Path(__file__).parents[2]


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


def test_hung_busy_and_killed(tiny):
    server = VllmServer(request(tiny.base))
    with server:
        url, leader = server.base_url, server.pid
        assert len(group(leader)) >= 4
        server.signal(signal.SIGSTOP)
        try:
            assert engine_probe.live(url, 1.0).reason == "no answer in time"
        finally:
            server.signal(signal.SIGCONT)
        wait_for(lambda: engine_probe.live(url, 5.0).ok, 30)

        # The engine hangs, as with a GPU fault, while its HTTP server answers its health route.
        engine = next(p for p in group(leader) if "EngineCore" in " ".join(p.cmdline()))
        engine.suspend()
        try:
            assert engine_probe.listens(url, 2.0)
            assert engine_probe.live(url, 1.0).reason == "no answer in time"
            asking = threading.Thread(target=_ask, args=(server,))
            asking.start()
            wait_for(lambda: not engine_probe.live(url, 1.0).ok, 10)
        finally:
            engine.resume()
            asking.join()
        wait_for(lambda: engine_probe.live(url, 5.0).ok, 30)

        # The engine dies: vLLM ends, and nothing of it is left.
        engine.kill()
        wait_for(lambda: not engine_probe.live(url, 2.0).ok, 30)
        wait_for(lambda: not group(leader), 60)
    assert not group(leader)


def _ask(server):
    with server.client() as client:
        client.chat(prompts(1)[0], max_tokens=20)


def test_killing_it_ends_its_engine(tiny):
    server = VllmServer(request(tiny.base))
    server.start()
    leader = server.pid
    server.kill()
    wait_for(lambda: not group(leader), 10)
    # The kernel closes its sockets after the processes are gone.
    wait_for(lambda: engine_probe.live(server.base_url, 1.0).reason == "nothing listens", 10)


def test_a_draining_server_finishes_its_answers(tiny):
    """SIGTERM goes to the process that was started; the engine's processes go on until then."""
    begun = threading.Event()
    answers = []
    with VllmServer(request(tiny.base)) as server:
        leader = server.pid

        def ask():
            with server.client() as client:
                answers.append(
                    client.chat(
                        prompts(1)[0],
                        max_tokens=64,
                        stream=True,
                        extra={"ignore_eos": True},
                        on_begin=begun.set,
                    )
                )

        asking = threading.Thread(target=ask)
        asking.start()
        assert begun.wait(60)
        server.drain()
        asking.join(60)
        assert answers[0].usage.completion_tokens == 64
        wait_for(lambda: not group(leader), 60)


def test_it_ends_with_the_process_that_started_it(tiny):
    port = free_port()
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tests.vllm.reference import request\n"
        "from tuneline.serving.engines.vllm.engine import VllmServer\n"
        f"server = VllmServer(request(Path({str(tiny.base)!r}), port={port}))\n"
        "server.start()\nprint(server.pid, flush=True)\nsys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env=child_environment(ROOT),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        leader = int(parent.stdout.readline())
        assert engine_probe.live(f"http://127.0.0.1:{port}", 5.0).ok
    finally:
        parent.kill()
        parent.wait()
        parent.stdin.close()
        parent.stdout.close()
    wait_for(lambda: not group(leader), 40)


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


def test_no_time_left_is_worth_another_try(tiny):
    server = VllmServer(request(tiny.base, start_seconds=2.0))
    with pytest.raises(RetryableError, match="was not ready after 2 s: it did not listen"):
        server.start()
