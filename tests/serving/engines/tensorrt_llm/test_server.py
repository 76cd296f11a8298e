"""The server: its name, its answers, its counters, how it dies."""

import os
import signal
import socket
import sys
import threading
import time
from dataclasses import replace

import httpx
import psutil
import pytest
from tests.lab.commands import call
from tests.lab.trtllm import H100
from tests.lab.waiting import wait_for

from tuneline.errors import RetryableError, UserError
from tuneline.models.base_model import load_tokenizer
from tuneline.serving.client import ContextOverflow
from tuneline.serving.engines import get_engine
from tuneline.serving.engines import probe as engine_probe
from tuneline.serving.engines.server import ServeRequest
from tuneline.serving.engines.tensorrt_llm.engine import TrtllmServer, start_error
from tuneline.serving.processes import free_port

STORY = [{"role": "user", "content": "tell a story"}]


def server_of(folder, alias="tiny", **fields):
    return TrtllmServer(ServeRequest(folder, alias, 2, 512, **fields), "tensorrt")


@pytest.fixture(scope="module")
def server(image, built):
    with server_of(built) as running:
        yield running


def test_it_listens_on_loopback_under_the_name_that_was_asked_for(server):
    assert server.base_url.startswith("http://127.0.0.1:")
    listed = httpx.get(f"{server.base_url}/v1/models").json()["data"]
    assert [entry["id"] for entry in listed] == ["tiny"]
    assert httpx.get(f"{server.base_url}/version").json() == {"version": "1.2.1"}
    assert httpx.get(f"{server.base_url}/health_generate").status_code == 200
    assert server.memory_bytes() > 10e6


def test_it_answers_as_a_client_expects(server):
    with server.client() as client:
        plain = client.chat(STORY, max_tokens=8, logprobs=True)
        streamed = client.chat(STORY, max_tokens=8, stream=True)
        assert plain.text == streamed.text
        assert len(plain.logprobs) == plain.usage.completion_tokens
        assert all(entry.logprob <= 0 for entry in plain.logprobs)
        assert streamed.usage.completion_tokens == plain.usage.completion_tokens
        assert streamed.ttft is not None
        with pytest.raises(ContextOverflow, match="should not exceed max_seq_len"):
            client.chat(STORY, max_tokens=600)


def test_its_counters_are_those_of_the_answers(server):
    before = server.counters()
    with server.client() as client:
        answers = [client.chat(STORY, max_tokens=n, extra={"ignore_eos": True}) for n in (5, 9)]
    after = server.counters()
    assert after.completion_tokens - before.completion_tokens == 14
    prompt = sum(a.usage.prompt_tokens - a.usage.cached_tokens for a in answers)
    assert after.prompt_tokens - before.prompt_tokens == prompt
    assert after.batch_since(before) >= 1.0
    assert server.counters() == after


def test_it_renders_and_tokenises_as_training_did(server, tiny_dir):
    tokenizer = load_tokenizer(tiny_dir)
    text = tokenizer.apply_chat_template(STORY, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert server.tokenize([text, "a b"])[0] == ids
    assert server.renders(STORY, text, ids)
    assert not server.renders(STORY, text + " ", ids)
    assert not server.renders([*STORY, {"role": "assistant", "content": "x"}], text, ids)


def test_an_adapter_is_refused(server):
    with pytest.raises(UserError, match="serves here is the merged model"):
        server.with_adapter("tuned")


def test_a_busy_engine_is_alive(server):
    def ask():
        with server.client() as client:
            client.chat(STORY, max_tokens=450, extra={"ignore_eos": True})

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    seen = [engine_probe.live(server.base_url, 5.0).ok for _ in range(3)]
    for thread in threads:
        thread.join(60)
    assert all(seen)


def test_a_stopped_group_is_not_alive_and_resumes(image, built):
    with server_of(built) as running:
        running.signal(signal.SIGSTOP)
        port = int(running.base_url.rsplit(":", 1)[1])
        socket.create_connection(("127.0.0.1", port), 2).close()
        assert not engine_probe.live(running.base_url, 2.0).ok
        running.signal(signal.SIGCONT)
        wait_for(lambda: engine_probe.live(running.base_url, 5.0).ok, what="life")


def test_a_term_signal_lets_requests_finish_and_leaves_nothing(image, built):
    running = server_of(built)
    running.start()
    family = psutil.Process(running.pid).children(recursive=True)
    assert len(family) >= 2
    answers = []

    def ask():
        with running.client() as client:
            answers.append(client.chat(STORY, max_tokens=300, extra={"ignore_eos": True}))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.2)
    running.signal(signal.SIGTERM)
    asking.join(60)
    assert answers[0].usage.completion_tokens == 300
    running.stop()
    wait_for(lambda: not any(p.is_running() for p in family), what="the end of all")


def test_a_kill_reaches_all_of_its_processes(image, built):
    running = server_of(built)
    running.start()
    family = psutil.Process(running.pid).children(recursive=True)
    running.kill()
    wait_for(lambda: not any(alive(p) for p in family), what="the end of all")


def alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_it_ends_with_the_process_that_started_it(image, built):
    code = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from tests.serving.engines.tensorrt_llm.test_server import server_of\n"
        f"server = server_of(Path({str(built)!r}))\n"
        "server.start()\n"
        "print(server.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    answer = call(sys.executable, "-c", code, PYTHONPATH="include:.")
    pid = int(answer.stdout)
    wait_for(lambda: not psutil.pid_exists(pid), seconds=40, what="the end of the orphan")


def test_an_engine_that_answers_nothing_is_never_ready(image, built, monkeypatch):
    monkeypatch.setenv("TRTLLM_LAB_MUTE", "1")
    with pytest.raises(RetryableError, match=r"not ready after 6 s: .*without a token"):
        server_of(built, start_seconds=6.0).start()


def test_start_errors_name_the_cause(image, built, other_gpu, tmp_path):
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(RetryableError, match="Failed to bind socket to 127"),
    ):
        server_of(built, port=port).start()
    said = r"max_batch_size \[9\] is greater than .*; build the engine for more"
    with pytest.raises(UserError, match=said):
        TrtllmServer(ServeRequest(built, "tiny", 9, 512), "tensorrt").start()
    other_gpu(*H100)
    # The identity is compared before; TensorRT itself refuses as well.
    with pytest.raises(UserError, match=r"expecting compute 8\.9 got compute 9\.0.*on this GPU"):
        server_of(built).start()


def test_errors_of_logs_that_only_a_gpu_can_give(tmp_path):
    memory = "[TRT-LLM] [E] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    error = start_error(tmp_path, 1, memory)
    assert "CUDA out of memory" in str(error)
    assert "lower deployment.parallel" in str(error)
    raised = "Traceback\nmpi4py.MPI.Exception: bad rank\nRuntimeError: Executor worker died\n"
    assert str(start_error(tmp_path, 1, raised)).endswith("Executor worker died (exit code 1)")
    assert str(start_error(tmp_path, 3, "nothing")).endswith("nothing (exit code 3)")


def test_the_pytorch_backend_serves_the_checkpoint(image, tiny_dir):
    engine = get_engine("tensorrt_llm_pytorch")
    assert engine.missing() is None
    assert engine.on_gpu()
    assert engine.version() == "tensorrt_llm 1.2.1"
    request = ServeRequest(tiny_dir, "tiny", 2, 256)
    assert engine.make_variant("f16", tiny_dir, tiny_dir, texts=(), log=print) == tiny_dir
    with pytest.raises(UserError, match="no variant fp8"):
        engine.make_variant("fp8", tiny_dir, tiny_dir, texts=(), log=print)
    with engine.server(request) as running:
        with running.client() as client:
            before = running.counters()
            answer = client.chat(STORY, max_tokens=6, extra={"ignore_eos": True})
            assert running.counters().completion_tokens - before.completion_tokens == 6
        tokenizer = load_tokenizer(tiny_dir)
        text = tokenizer.apply_chat_template(STORY, tokenize=False, add_generation_prompt=True)
        assert running.renders(STORY, text, running.tokenize([text])[0])
        assert answer.usage.completion_tokens == 6
    sequences = [[5, 6, 7, 8, 9], [9, 8, 7]]
    found = engine.distances(tiny_dir, {"f16": tiny_dir}, sequences, [2, 1], request)["f16"]
    assert (found.tokens, found.mean_kl) == (5, 0.0)
    assert found.perplexity > 1


def test_the_command_of_a_pod_replaces_itself(image, built):
    request = ServeRequest(built, "tiny", 2, 512, port=free_port())
    command = get_engine("tensorrt_llm").command(request)
    assert os.path.basename(command[0]).startswith("python")
    assert "--stop-with-stdin" not in command
    assert replace(request, host="0.0.0.0").host == "0.0.0.0"
