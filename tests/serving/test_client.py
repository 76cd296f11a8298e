"""The client against a real engine, and against answers that no engine should give."""

import json
import time

import pytest
from tests.lab.http_server import Handler, serving

from tuneline.serving.client import (
    ContextOverflow,
    EngineClient,
    EngineError,
    EngineUnavailable,
    StreamCollector,
    parse_answer,
)
from tuneline.serving.engines.llama_cpp.engine import LlamaServer
from tuneline.serving.engines.server import ServeRequest
from tuneline.serving.protocol import read_metrics

HELLO = [{"role": "user", "content": "hello 123"}]


def test_an_answer_and_its_stream_are_the_same(engine):
    with engine.client() as client:
        whole = client.chat(HELLO, max_tokens=12, logprobs=True)
        stream = client.chat(HELLO, max_tokens=12, logprobs=True, stream=True)
    assert whole.text == stream.text
    assert whole.finish_reason == stream.finish_reason == "length"
    assert whole.usage.completion_tokens == stream.usage.completion_tokens == 12
    assert whole.usage.prompt_tokens == stream.usage.prompt_tokens > 5
    assert whole.ttft is None
    assert 0 < stream.ttft <= stream.chunk_times[-1] <= stream.total
    # A character that the last tokens leave incomplete has no entry.
    assert 8 <= len(whole.logprobs) <= 12
    assert all(entry.logprob <= 0 for entry in whole.logprobs)
    assert whole.logprobs[0].logprob == pytest.approx(stream.logprobs[0].logprob, abs=0.01)


def test_a_batch_keeps_its_order_and_overlaps(engine):
    batch = [[{"role": "user", "content": f"number {index}"}] for index in range(10)]
    with engine.client() as client:
        alone = [client.chat(messages, max_tokens=8).text for messages in batch]
        together = client.complete_batch(batch, concurrency=4, max_tokens=8, stream=True)
    same = sum(a == b.text for a, b in zip(alone, together, strict=True))
    # Batched arithmetic may round a near-tie the other way, not more than that.
    assert same >= 8
    assert all(result.ttft is not None for result in together)


def test_token_ids_are_continued_as_they_are(engine):
    """The chat template renders the same ids, so that both routes give the same answers."""
    rendered = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    (ids,) = engine.tokenize([rendered])
    messages = [{"role": "user", "content": "hello"}]
    assert engine.renders(messages, rendered, ids)
    with engine.client() as client:
        answer = client.chat(messages, max_tokens=8).text
        both = client.continue_batch([ids, ids[:3]], concurrency=2, max_tokens=8)
        assert len(both) == 2
        assert both[0] == answer
        with pytest.raises(ContextOverflow):
            client.continue_batch([ids * 500], concurrency=1, max_tokens=4)


def test_sampling_is_seeded_and_tokens_are_counted(engine):
    with engine.client() as client:
        before = client.metrics()["llamacpp:tokens_predicted_total"]
        first, again, other = (
            client.chat(HELLO, max_tokens=16, temperature=1.5, seed=seed).text for seed in (1, 1, 2)
        )
        client.chat(HELLO, max_tokens=5, extra={"ignore_eos": True})
        assert client.metrics()["llamacpp:tokens_predicted_total"] >= before + 5
    assert first == again != other


def test_what_is_refused_or_reaches_nobody(engine):
    long = [{"role": "user", "content": "word " * 1000}]
    with engine.client() as client:
        with pytest.raises(ContextOverflow, match="does not fit"):
            client.chat(long, max_tokens=4)
        with pytest.raises(ContextOverflow):
            client.complete_batch([HELLO, long], concurrency=2, max_tokens=4)
        with pytest.raises(EngineError) as caught:
            client.chat([{"role": "user"}], max_tokens=4)
        assert caught.value.status >= 400
    with EngineClient("http://127.0.0.1:9") as client:
        with pytest.raises(EngineUnavailable, match="can't be reached"):
            client.chat(HELLO, max_tokens=1)
        with pytest.raises(EngineUnavailable):
            client.metrics()


class Broken(Handler):
    """Answers each path in its own wrong way."""

    def do_POST(self):
        self.body()
        kind = self.path.split("/")[1]
        if kind == "slow":
            time.sleep(1.0)
        answer = {
            "loading": json.dumps({"error": {"message": "Loading model"}}),
            "text": "<html>",
            "empty": json.dumps({"choices": []}),
            "cut": 'data: {"choices":[{"delta":{"content":"half"}}]}\n\n',
            "error": 'data: {"error":{"message":"out of memory"}}\n\n',
            "slow": "{}",
        }[kind]
        self.answer(answer.encode(), 503 if kind == "loading" else 200)


@pytest.fixture
def broken():
    with serving(Broken) as url:
        yield url


@pytest.mark.parametrize(
    ("kind", "stream", "error", "sentence"),
    [
        ("loading", False, EngineUnavailable, "503: Loading model"),
        ("loading", True, EngineUnavailable, "503: Loading model"),
        ("text", False, EngineError, "did not answer with JSON"),
        ("empty", False, EngineError, "not a chat completion"),
        ("cut", True, EngineError, "ended before its end mark"),
        ("error", True, EngineError, "out of memory"),
        ("slow", False, EngineUnavailable, "did not answer in time"),
    ],
)
def test_broken_answers(kind, stream, error, sentence, broken):
    with EngineClient(f"{broken}/{kind}", timeout=0.4) as client:
        with pytest.raises(error, match=sentence):
            client.chat(HELLO, max_tokens=1, stream=stream)
        with pytest.raises(error, match=sentence):
            client.complete_batch([HELLO], concurrency=1, max_tokens=1, stream=stream)


def test_an_answer_without_usage_counts_nothing():
    answer = parse_answer({"choices": [{"message": {"content": None}}]}, 1.0)
    assert (answer.text, answer.usage.prompt_tokens, answer.ttft) == ("", 0, None)
    collector = StreamCollector(time.perf_counter())
    collector.feed(
        b': ping\n\ndata: {"choices":[{"delta":{"role":"assistant"}}]}\n\ndata: [DONE]\n\n'
    )
    assert collector.result().ttft is None


def test_a_thought_that_took_all_tokens_is_no_empty_answer():
    message = {"content": None, "reasoning_content": "Let me see"}
    choice = {"message": message, "finish_reason": "length"}
    answer = parse_answer({"choices": [choice]}, 1.0)
    assert (answer.text, answer.cut) == ("<think>Let me see", True)
    message["content"] = "Yes."
    assert parse_answer({"choices": [choice]}, 1.0).text == "Yes."


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("{% if enable_thinking %}x{% endif %}", {"enable_thinking": False}),
        ("{% if thinking is defined and thinking %}x{% endif %}", {"thinking": False}),
        ("{% set enable_thinking = false %}{{ enable_thinking }}", {}),
        ("{{ messages }}", {}),
        ("{% broken", {}),
    ],
)
def test_thoughts_are_off_in_every_chat_with_a_model_that_has_a_switch(tmp_path, template, fields):
    (tmp_path / "chat_template.jinja").write_text(template)
    server = LlamaServer(ServeRequest(tmp_path, "m", 1, 64))
    server.base_url = "http://127.0.0.1:9"
    with server.client() as client:
        body = client.chat_body([{"role": "user", "content": "a"}], max_tokens=1)
    assert body.get("chat_template_kwargs", {}) == fields


def test_calls_in_parts_are_the_calls_of_a_whole_answer():
    call = {"index": 0, "id": "x", "function": {"name": "find", "arguments": '{"a":'}}
    rest = {"index": 0, "function": {"arguments": " 1}"}}
    collector = StreamCollector(time.perf_counter())
    for delta in ({"content": "Wait."}, {"tool_calls": [call]}, {"tool_calls": [rest]}):
        chunk = json.dumps({"choices": [{"delta": delta}]})
        collector.feed(f"data: {chunk}\n\n".encode())
    collector.feed(b"data: [DONE]\n\n")
    function = {"name": "find", "arguments": '{"a": 1}'}
    message = {"content": "Wait.", "tool_calls": [{"function": function}]}
    whole = parse_answer({"choices": [{"message": message}]}, 1.0)
    assert collector.result().text == whole.text
    assert len(collector.result().chunk_times) == 3


METRICS = """\
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="a model } of mine"} 3.0
vllm:generation_tokens_total{engine="1",model_name="m"} 4.0 1795678347595
vllm:steps_bucket{le="1.0"} 2.0
vllm:steps_bucket{le="+Inf"} 5.0
vllm:steps_count{engine="0"} 5.0

llamacpp:n_decode_total 17
"""


def test_series_of_one_name_are_added_up_and_what_is_not_a_number_is_refused():
    assert read_metrics(METRICS) == {
        "vllm:generation_tokens_total": 7.0,
        "vllm:steps_count": 5.0,
        "llamacpp:n_decode_total": 17.0,
    }
    with pytest.raises(ValueError, match="could not convert"):
        read_metrics("<html lang=en>\n")
