"""Every engine that a run can start answers the same questions; vLLM does so in tests/vllm."""

import contextlib
import math
import pickle
import shutil
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from tests.lab.commands import call
from tests.lab.waiting import wait_for

from tuneline.errors import RetryableError
from tuneline.models.base_model import load_tokenizer
from tuneline.serving.client import ContextOverflow
from tuneline.serving.engines import get_engine
from tuneline.serving.engines import probe as engine_probe
from tuneline.serving.engines.divergence import ScoredRow, checkpoint_losses, rows_of
from tuneline.serving.engines.server import ServeRequest

STORY = [{"role": "user", "content": "tell a story"}]
SEQUENCES = [np.random.default_rng(n).integers(3, 400, 40).tolist() for n in range(4)]


@dataclass(frozen=True)
class Case:
    """An engine, a request for two slots of 512 tokens, and the checkpoint that it serves.

    Attributes:
        spoiled: that checkpoint with a norm that is off, in the engine's form.
    """

    engine: str
    request: ServeRequest
    checkpoint: Path
    spoiled: Path

    def server(self, **fields):
        return get_engine(self.engine).server(replace(self.request, **fields))


def spoil(checkpoint, target):
    """A copy of a checkpoint whose last norm is too large."""
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(checkpoint, target)
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] *= 1.2
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.fixture(
    scope="module", params=["llama_cpp", pytest.param("tensorrt_llm", marks=pytest.mark.long)]
)
def case(request, tiny_dir, tmp_path_factory):
    from tuneline.gguf.export import export_gguf

    folder = tmp_path_factory.mktemp(request.param)
    spoiled = spoil(tiny_dir, folder / "spoiled")
    if request.param == "llama_cpp":
        model = request.getfixturevalue("tiny_gguf")
        spoiled = export_gguf(spoiled, folder / "spoiled.gguf").path
    else:
        model, build = request.getfixturevalue("built"), request.getfixturevalue("build")
        spoiled = build(spoiled, folder / "engine")
    asked = ServeRequest(model, "tiny", 2, 512, threads=1)
    return Case(request.param, asked, tiny_dir, spoiled)


@pytest.fixture(scope="module")
def server(case):
    with case.server() as running:
        yield running


def ask(server, tokens, **options):
    """Have a server write so many tokens."""
    with server.client() as client:
        return client.chat(STORY, max_tokens=tokens, extra={"ignore_eos": True}, **options)


def alive(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def family(server):
    own = psutil.Process(server.pid)
    return [own, *own.children(recursive=True)]


def wait_until_gone(processes):
    wait_for(lambda: not any(map(alive, processes)), what="the end of all")


def test_it_listens_on_loopback_under_its_alias(server):
    assert server.base_url.startswith("http://127.0.0.1:")
    listed = httpx.get(f"{server.base_url}/v1/models").json()["data"]
    assert [entry["id"] for entry in listed] == ["tiny"]
    assert engine_probe.ready(server.base_url, 10.0, "tiny").ok
    assert engine_probe.ready(server.base_url, 10.0, "other").reason == "it serves tiny, not other"
    assert server.load_seconds > 0
    assert server.memory_bytes() > 10e6


def test_an_answer_in_parts_is_the_whole_one(server):
    with server.client() as client:
        plain = client.chat(STORY, max_tokens=8, logprobs=True)
        streamed = client.chat(STORY, max_tokens=8, stream=True)
        with pytest.raises(ContextOverflow):
            client.chat([{"role": "user", "content": "story " * 2000}], max_tokens=8)
    assert plain.text == streamed.text
    assert len(plain.logprobs) == plain.usage.completion_tokens == streamed.usage.completion_tokens
    assert all(entry.logprob <= 0 for entry in plain.logprobs)
    assert streamed.ttft is not None


def test_its_counters_are_those_of_the_answers(server):
    before = server.counters()
    answers = [ask(server, count) for count in (5, 9)]
    after = server.counters()
    assert after.completion_tokens - before.completion_tokens == 14
    # Prompt tokens from the prefix cache are not computed.
    computed = after.prompt_tokens - before.prompt_tokens
    assert 0 < computed <= sum(answer.usage.prompt_tokens for answer in answers)
    assert after.batch_since(before) == pytest.approx(1.0, abs=0.3)
    assert server.counters() == after
    with ThreadPoolExecutor(4) as pool:
        # More wait than the server has slots, so that two are taken on a busy machine too.
        list(pool.map(lambda _: ask(server, 300), range(8)))
    assert server.counters().batch_since(after) > 1.3


def test_it_renders_and_tokenises_as_training_did(server, case):
    tokenizer = load_tokenizer(case.checkpoint)
    text = tokenizer.apply_chat_template(STORY, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert server.tokenize([text, "a b"])[0] == ids
    assert server.renders(STORY, text, ids)
    assert not server.renders(STORY, text, ids[:-1])
    assert not server.renders([*STORY, {"role": "assistant", "content": "x"}], text, ids)


def test_it_is_live_while_all_slots_are_taken(server):
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(ask, server, 300) for _ in range(4)]
        seen = [engine_probe.live(server.base_url, 5.0) for _ in range(3)]
        assert all(one.result().usage.completion_tokens == 300 for one in running)
    assert all(found.ok for found in seen), seen


def test_a_stopped_one_is_hung_and_a_killed_one_leaves_nothing(case):
    server = case.server()
    server.start()
    processes = family(server)
    server.signal(signal.SIGSTOP)
    socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 2).close()
    assert engine_probe.live(server.url, 1.0).reason == "no answer in time"
    server.signal(signal.SIGCONT)
    wait_for(lambda: engine_probe.live(server.url, 5.0).ok, what="life")
    server.kill()
    wait_until_gone(processes)
    # The kernel closes its sockets after the processes are gone.
    wait_for(lambda: engine_probe.live(server.url, 1.0).reason == "nothing listens")


def test_a_term_signal_lets_answers_finish_and_leaves_nothing(case):
    server, begun = case.server(), threading.Event()
    server.start()
    processes = family(server)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, server, 450, stream=True, on_begin=begun.set)
        assert begun.wait(60)
        server.drain()
        assert running.result().usage.completion_tokens == 450
    wait_for(lambda: server.ended() is not None, what="its end")
    server.stop()
    wait_until_gone(processes)


def test_it_ends_with_the_process_that_started_it(case):
    code = (
        "import os, pickle, signal, sys\n"
        "from tuneline.serving.engines import get_engine\n"
        "server = get_engine(sys.argv[1]).server(pickle.loads(bytes.fromhex(sys.argv[2])))\n"
        "server.start()\n"
        "print(server.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    asked = pickle.dumps(case.request).hex()
    answer = call(sys.executable, "-c", code, case.engine, asked, PYTHONPATH="include:.")
    leader = int(answer.stdout)
    wait_for(lambda: not psutil.pid_exists(leader), what="the end of the orphan")


def test_a_start_that_fails_says_why(case):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(RetryableError, match=r"(?i)bind|in use"):
            case.server(port=taken).start()
    with pytest.raises(RetryableError, match="was not ready after 0 s: it did not listen"):
        case.server(start_seconds=0.0).start()


def sums(losses):
    return list(map(sum, losses))


def test_its_probabilities_are_those_of_transformers(case):
    engine, model = get_engine(case.engine), case.request.model
    rows = rows_of(SEQUENCES, [10] * 4)
    expected = sums(checkpoint_losses(case.checkpoint, rows, threads=1))
    variants = {"same": model, "spoiled": case.spoiled}
    found = engine.distances(model, variants, rows, case.request)
    same, spoiled = found["same"], found["spoiled"]
    assert (same.tokens, same.mean_kl, same.same_top_token) == (4 * 30, 0.0, 1.0)
    assert same.perplexity == pytest.approx(math.exp(sum(expected) / same.tokens), rel=1e-3)
    assert spoiled.mean_kl > 1e-4
    assert spoiled.reference_perplexity == same.perplexity
    losses = engine.losses(model, [*rows, ScoredRow([5], []), ScoredRow([5, 6], [])], case.request)
    assert list(map(len, losses)) == [30] * 4 + [0, 0]
    assert sums(losses) == pytest.approx([*expected, 0.0, 0.0], rel=1e-3)
    wrong = sums(engine.losses(case.spoiled, rows, case.request))
    assert abs(sum(wrong) / sum(expected) - 1) > 2e-3
    assert engine.losses(model, [ScoredRow([5], [])], case.request) == [[]]
