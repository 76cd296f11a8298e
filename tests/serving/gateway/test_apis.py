"""Endpoints beside chat, and what chat passes through: all counted, whole and streamed."""

import json

import pytest
from tests.lab.api_server import ApiServer

from tuneline.serving.gateway.chain.attempt import UsageReports
from tuneline.serving.gateway.protocol import Usage

from .conftest import text_of, upstream_entry

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
LIMITS = {"min_mean_logprob": -1.0}


@pytest.fixture(scope="module")
def servers():
    made = {name: ApiServer(name) for name in ("small", "large")}
    yield made
    for server in made.values():
        server.stop()


def counts(row: dict) -> tuple[int, int, int]:
    return row["prompt_tokens"], row["completion_tokens"], row["estimated"]


def events_of(response) -> list[dict]:
    lines = [line[6:] for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def complete(gateway, **fields):
    return gateway.client.post("/v1/completions", json={"model": "support", **fields})


def test_completions_whole_and_streamed(start, small):
    gateway = start(small)
    whole = complete(gateway, prompt="one two", max_tokens=3)
    assert whole.status_code == 200
    assert whole.json()["choices"][0]["text"] == "small-0 small-1 small-2 "
    assert whole.headers["x-tuneline-served-by"] == "small"
    streamed = events_of(complete(gateway, prompt="one two", stream=True))
    assert "".join(e["choices"][0]["text"] for e in streamed) == "".join(
        f"small-{i} " for i in range(5)
    )
    assert not any("usage" in event for event in streamed)
    first, second = gateway.rows(2)
    assert (counts(first), counts(second)) == ((2, 3, 0), (2, 5, 0))
    assert second["ttft_ms"] > 0
    assert small.requests()[0]["model"] == "small-model"


def test_completions_without_usage_are_estimated(start, small):
    small.sends_usage = False
    gateway = start(small)
    events_of(complete(gateway, prompt=["12345678", "1234"], max_tokens=2, stream=True))
    complete(gateway, prompt=[1, 2, 3], max_tokens=2)
    streamed, whole = gateway.rows(2)
    # Without a template around the prompts; two chunks of each choice, 16 bytes of the other.
    assert counts(streamed) == (3, 4, 1)
    assert counts(whole) == (3, 4, 1)


@pytest.mark.parametrize("stream", [False, True])
def test_completions_fall_back_and_are_judged(start, small, large, stream):
    limits = {**LIMITS, "stream_window_tokens": 3}
    gateway = start(small, large, model={"low_confidence": limits})
    small.logprob = -2.0
    unsure = complete(gateway, prompt="a", stream=stream)
    assert unsure.headers["x-tuneline-fallback-reason"] == "low_confidence"
    assert small.requests()[0]["logprobs"] == 1
    small.mode = "error"
    failed = complete(gateway, prompt="a", stream=stream)
    assert failed.headers["x-tuneline-fallback-reason"] == "upstream_5xx"
    assert "large-4" in failed.text


def test_logprobs_that_a_client_asked_for_stay(start, small, large):
    gateway = start(small, large, model={"low_confidence": LIMITS})
    assert "logprobs" not in complete(gateway, prompt="a").json()["choices"][0]
    asked = complete(gateway, prompt="a", logprobs=0)
    assert small.requests()[-1]["logprobs"] == 0
    assert asked.status_code == 200


@pytest.mark.parametrize("reports", ["all", "each"])
@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_are_all_counted(start, small, reports, stream):
    small.reports = reports
    gateway = start(small)
    response = gateway.chat(n=3, stream=stream)
    assert response.status_code == 200
    (row,) = gateway.rows(1)
    if reports == "each" and not stream:
        # The engine told of one answer alone: 3 answers of 40 bytes, 4 bytes a token.
        assert counts(row) == (7, 30, 1)
    else:
        assert counts(row) == (7, 15, 0)


@pytest.mark.parametrize("reports", ["all", "each"])
def test_several_prompts_are_all_counted(start, small, reports):
    small.reports = reports
    gateway = start(small)
    events = events_of(complete(gateway, prompt=["a b", "c d"], n=2, stream=True))
    assert {choice["index"] for event in events for choice in event["choices"]} == {0, 1, 2, 3}
    (row,) = gateway.rows(1)
    assert row["completion_tokens"] == 20
    assert row["estimated"] == 0


def test_reports_of_each_choice_add_up_and_a_common_one_stands():
    reports = UsageReports(choices=4, prompts=2)
    for prompt in (3, 3, 5):
        reports.add(Usage(prompt, 10, 2), at_an_end=True)
    assert reports.add(Usage(5, 10, 2), at_an_end=True) == Usage(8, 40, 4)
    # vLLM's continuous reports have one more: the sum.
    assert reports.add(Usage(8, 40, 0), at_an_end=True) == Usage(8, 40, 0)


def test_a_stream_whose_second_choice_never_ends_broke_off(start, small):
    small.mode = "die_between"
    response, events, done = start(small).stream(n=2)
    assert response.status_code == 200
    assert events[-1]["error"]["type"] == "server_error"
    assert not done


@pytest.mark.parametrize("sends_usage", [True, False])
def test_tool_calls_pass_through_and_count(start, small, sends_usage):
    small.sends_usage = sends_usage
    gateway = start(small)
    whole = gateway.chat(tools=[TOOL], tool_choice="auto").json()["choices"][0]
    assert whole["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Ulm"}'
    _, events, done = gateway.stream(tools=[TOOL])
    pieces = [
        call["function"].get("arguments") or ""
        for event in events
        for choice in event["choices"]
        for call in choice["delta"].get("tool_calls", [])
    ]
    assert "".join(pieces) == '{"city": "Ulm"}'
    assert done
    assert small.requests()[0]["tools"] == [TOOL]
    first, second = gateway.rows(2)
    assert counts(first) == (5, 4, 0)
    # Counted by its three chunks: name, and two pieces of arguments.
    assert counts(second) == ((5, 4, 0) if sends_usage else (9, 3, 1))


def test_embeddings(start, small, large, tmp_path):
    section = {"store": (tmp_path / "store").as_uri(), "spool": "spool"}
    gateway = start(small, large, production_log=section)
    body = {"model": "support", "input": ["one two", "three"]}
    response = gateway.client.post("/v1/embeddings", json=body)
    assert [entry["embedding"][0] for entry in response.json()["data"]] == [7.0, 5.0]
    assert response.headers["x-tuneline-served-by"] == "small"
    (row,) = gateway.rows(1)
    assert counts(row) == (3, 0, 0)
    assert gateway.runtime.production_log.pending == 0
    gateway.chat()
    assert gateway.runtime.production_log._bytes_taken > 0


def test_an_engine_without_embeddings_is_one_clear_error_and_no_fallback(start, small, large):
    small.has_embeddings = False
    gateway = start(small, large)
    response = gateway.client.post("/v1/embeddings", json={"model": "support", "input": "a"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "embeddings_not_offered"
    assert error["message"] == "This model has no embeddings: its engine does not offer them."
    assert large.requests() == []
    assert counts(gateway.rows(1)[0]) == (0, 0, 0)


def test_embeddings_of_another_model_are_no_fallback(start, small, large):
    small.stop()
    gateway = start(small, large)
    response = gateway.client.post("/v1/embeddings", json={"model": "support", "input": "a"})
    assert response.status_code == 502
    assert large.requests() == []


def test_a_single_model(start, small):
    client = start(upstream_entry(small, version="a1"), model={"id": "team/support"}).client
    for name in ("team/support", "team/support@a1"):
        assert client.get(f"/v1/models/{name}").json()["id"] == name
    missing = client.get("/v1/models/other")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


def test_a_real_engine(start, engine):
    entry = {"name": "tiny", "base_url": f"{engine.url}/v1", "model": "tiny"}
    gateway = start(entry)
    whole = complete(gateway, prompt="a b", max_tokens=3, logprobs=1, ignore_eos=True)
    assert whole.status_code == 200, whole.text
    assert whole.json()["choices"][0]["logprobs"]["content"][0]["logprob"] < 0
    streamed = complete(gateway, prompt="a b", max_tokens=3, stream=True, ignore_eos=True)
    assert [e["choices"][0]["finish_reason"] for e in events_of(streamed)][-1] == "length"
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    shaped = gateway.chat(max_tokens=200, response_format=form)
    assert json.loads(shaped.json()["choices"][0]["message"]["content"])["a"] in (1, 2)
    several = gateway.chat(n=2, max_tokens=6, stream=True, ignore_eos=True)
    assert several.status_code == 200
    none = gateway.client.post("/v1/embeddings", json={"model": "support", "input": "a"})
    assert none.json()["error"]["code"] == "embeddings_not_offered"
    whole_of_two = gateway.chat(n=2, max_tokens=6, ignore_eos=True)
    assert len(whole_of_two.json()["choices"]) == 2
    rows = gateway.rows(6)
    assert [row["completion_tokens"] for row in rows[:2]] == [3, 3]
    assert (rows[3]["completion_tokens"], rows[3]["estimated"]) == (12, 0)
    assert (rows[5]["prompt_tokens"], rows[5]["estimated"]) == (rows[3]["prompt_tokens"], 1)
    assert text_of(events_of(several))
