"""A running vLLM: its answers, its adapter, its counters, its tokenizer."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.vllm.reference import generated, prompts, request, served, share_equal

from tuneline.serving.engines import get_engine
from tuneline.serving.engines import probe as engine_probe
from tuneline.serving.engines.vllm.engine import VllmServer

ROWS = 100


def test_it_is_the_engine_of_its_name(tiny):
    engine = get_engine("vllm")
    assert engine.missing() is None
    assert engine.version().startswith("vllm 0.")
    assert not engine.on_gpu()
    assert isinstance(engine.server(request(tiny.base)), VllmServer)


def test_it_is_ready_once_it_has_generated_a_token(server):
    assert server.load_seconds > 0
    assert engine_probe.ready(server.base_url, 10.0, "tiny").ok
    assert engine_probe.ready(server.base_url, 10.0, "tuned").ok
    other = engine_probe.ready(server.base_url, 10.0, "other")
    assert other.reason == "it serves tiny, tuned, not other"


def test_the_base_answers_as_in_transformers(server, tiny):
    asked = prompts(ROWS)
    assert share_equal(served(server, asked), generated(tiny.base, asked)) >= 0.99


def test_the_adapter_answers_as_the_merged_model(server, tiny):
    asked = prompts(ROWS)
    adapted = served(server, asked, extra=server.with_adapter("tuned"))
    assert share_equal(adapted, generated(tiny.merged, asked)) >= 0.99
    # The adapter knows the task, the base does not.
    assert share_equal(adapted, served(server, asked)) < 0.5


def test_an_answer_does_not_depend_on_what_is_answered_beside_it(server):
    asked = prompts(40)
    alone = served(server, asked, concurrency=1)
    for _ in range(2):
        assert served(server, asked, concurrency=4) == alone


def test_counters_are_those_of_the_requests(server):
    before = server.counters()
    with server.client() as client:
        one = client.chat(prompts(1)[0], max_tokens=8, extra={"ignore_eos": True})
    after = server.counters()
    assert after.completion_tokens - before.completion_tokens == one.usage.completion_tokens == 8
    computed = after.prompt_tokens - before.prompt_tokens
    assert 0 < computed <= one.usage.prompt_tokens
    assert after.batch_since(before) == pytest.approx(1.0, abs=0.2)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda row: _long(server, row), range(4)))
    assert server.counters().batch_since(after) > 2


def _long(server, row):
    with server.client() as client:
        options = {"max_tokens": 200, "extra": {"ignore_eos": True}}
        return client.chat(prompts(row + 1)[row], **options)


def test_it_renders_and_tokenizes_as_training_does(server, tiny):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.base)
    messages = prompts(1)[0]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert server.renders(messages, text, ids)
    assert not server.renders(messages, text, ids[:-1])
    assert server.tokenize([text, "hello"])[0] == ids


def test_memory_is_that_of_all_its_processes(server):
    import psutil

    own = psutil.Process(server.pid).memory_info().rss
    # The launcher is small; the server, the engine and the worker each import torch.
    assert server.memory_bytes() > own + 500e6


def test_it_is_live_while_all_slots_are_taken(server):
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(_long, server, row) for row in range(8)]
        time.sleep(0.1)
        found = engine_probe.live(server.base_url, 5.0)
        assert found.ok, found.reason
        assert all(request.result().usage.completion_tokens == 200 for request in running)
