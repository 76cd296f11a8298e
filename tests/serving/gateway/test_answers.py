"""What clients get for what they ask, whole and streamed, and what the ledger keeps of it."""

import json
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from tests.lab.waiting import wait_for

from tuneline.serving.gateway.chain.attempt import UsageReports
from tuneline.serving.gateway.ledger.reports import totals_by_upstream
from tuneline.serving.protocol import SseParser, Usage, event

from .conftest import CHAT, ask, counts, text_of, upstream_entry

TEXT = "completions"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
WORDS = "".join(f"small-{i} " for i in range(5))
UNCOUNTED, EACH = {"sends_usage": False}, {"reports": "each"}


def written(payloads: list[dict]) -> dict[int, str]:
    """The texts of a whole answer or of a stream, by choice."""
    found = defaultdict(str)
    for choice in (c for payload in payloads for c in payload["choices"]):
        part = choice.get("message") or choice.get("delta") or choice
        calls = [call["function"].get("arguments") or "" for call in part.get("tool_calls") or []]
        found[choice["index"]] += "".join(calls) + (part.get("content") or part.get("text") or "")
    return found


@pytest.mark.parametrize(
    ("path", "fields", "server", "whole_row", "stream_row", "text"),
    [
        (CHAT, {}, {}, (3, 5, 0), (3, 5, 0), WORDS),
        (CHAT, {"max_tokens": 3}, {}, (3, 3, 0), (3, 3, 0), WORDS[:24]),
        # Words of 8 bytes, 4 bytes a token; 5 chunks of a stream; 3 + 4 + 2 for the prompt.
        (CHAT, {}, UNCOUNTED, (9, 10, 1), (9, 5, 1), WORDS),
        (CHAT, {"n": 3}, {}, (3, 15, 0), (3, 15, 0), WORDS),
        # An engine that counts one whole answer alone: 3 answers of 40 bytes.
        (CHAT, {"n": 3}, EACH, (3, 30, 1), (3, 15, 0), WORDS),
        (CHAT, {"tools": [TOOL]}, {}, (5, 4, 0), (5, 4, 0), '{"city": "Ulm"}'),
        # Counted by its three chunks: name, and two pieces of arguments.
        (CHAT, {"tools": [TOOL]}, UNCOUNTED, (5, 4, 0), (9, 3, 1), '{"city": "Ulm"}'),
        (TEXT, {"prompt": "one two"}, {}, (2, 5, 0), (2, 5, 0), WORDS),
        (TEXT, {"prompt": ["a b", "c d"], "n": 2}, {}, (4, 20, 0), (4, 20, 0), WORDS),
        (TEXT, {"prompt": ["a b", "c d"], "n": 2}, EACH, (2, 40, 1), (8, 20, 0), WORDS),
        # Without a template around the prompts.
        (TEXT, {"prompt": ["12345678", "1234"]}, UNCOUNTED, (3, 20, 1), (3, 10, 1), WORDS),
        (TEXT, {"prompt": [1, 2, 3]}, UNCOUNTED, (3, 10, 1), (3, 5, 1), WORDS),
    ],
)
def test_answers_are_passed_on_and_counted(
    start, small, path, fields, server, whole_row, stream_row, text
):
    for name, value in server.items():
        setattr(small, name, value)
    gateway = start(small)
    whole = gateway.post(path, **fields)
    response, events, done = gateway.stream(path, **fields)
    assert (whole.status_code, response.status_code, done) == (200, 200, True)
    assert whole.headers["x-tuneline-served-by"] == "small"
    assert response.headers["content-type"].startswith("text/event-stream")
    assert written([whole.json()]) == written(events)
    assert set(written(events).values()) == {text}
    # Usage is asked for in any case, and left to clients that asked.
    assert not any(event.get("usage") for event in events)
    assert small.requests()[1]["stream_options"] == {"include_usage": True}
    asked_for = gateway.stream(path, stream_options={"include_usage": True}, **fields)[1]
    assert any(event.get("usage") for event in asked_for) is small.sends_usage
    assert [counts(row) for row in gateway.rows(3)] == [whole_row, stream_row, stream_row]


def test_what_the_ledger_has_of_an_answer(start, small):
    gateway = start(small)
    response = gateway.chat(max_tokens=3)
    gateway.stream()
    row, streamed = gateway.rows(2)
    expected = {
        **{"request_id": response.headers["x-request-id"], "attempt": 1, "cached_tokens": 1},
        **{"key": "tester-0", "upstream": "small", "model_served": "small-model"},
        **{"status": "ok", "served": 1, "fallback_reason": None, "ttft_ms": None},
        "cost": pytest.approx(3 * 0.001 + 3 * 0.002),
    }
    assert expected.items() <= row.items()
    assert row["latency_ms"] > 0
    assert 0 < streamed["ttft_ms"] <= streamed["latency_ms"]
    assert "x-tuneline-fallback-reason" not in response.headers


def test_reports_of_each_choice_add_up_and_a_common_one_stands():
    reports = UsageReports(choices=4, prompts=2)
    for prompt in (3, 3, 5):
        reports.add(Usage(prompt, 10, 2), at_an_end=True)
    assert reports.add(Usage(5, 10, 2), at_an_end=True) == Usage(8, 40, 4)
    # vLLM's continuous reports have one more: the sum.
    assert reports.add(Usage(8, 40, 0), at_an_end=True) == Usage(8, 40, 0)


def test_tokens_reach_the_client_while_the_upstream_still_writes(start, small):
    small.token_delay_s = 0.1
    gateway = start(small)
    with gateway.client.stream("POST", f"/v1/{CHAT}", json=ask(stream=True)) as response:
        chunks = [chunk for chunk in response.iter_raw() if b"small-" in chunk]
    assert len(chunks) == 5


OPENAIS = {"reasoning_effort": "low", "safety_identifier": "u1", "verbosity": "low"}


@pytest.mark.parametrize(
    ("entry", "fields", "body", "without"),
    [
        ({}, {"temperature": 0, **OPENAIS}, {"temperature": 0, **OPENAIS}, {"lora"}),
        ({"extra_body": {"lora": [{"id": 0}]}}, {}, {"lora": [{"id": 0}]}, set()),
        # Of an adapter with a place, and of one with a name.
        ({"adapter": 1}, {}, {"lora": [{"id": 1, "scale": 1.0}]}, set()),
        ({"model": "base", "adapter": "small-model"}, {}, {"model": "small-model"}, {"lora"}),
        # The other upstream takes `top_k`, and this one does not.
        ({"fields": ["grammar"]}, {"grammar": "a", "top_k": 4}, {"grammar": "a"}, {"top_k"}),
    ],
)
def test_what_an_upstream_is_asked_for(
    calm, small, large, monkeypatch, entry, fields, body, without
):
    monkeypatch.setenv("SMALL_KEY", "upstream-secret")
    gateway = calm(upstream_entry(small, api_key_env="SMALL_KEY", **entry), large)
    assert gateway.chat(**fields).headers["x-tuneline-served-by"] == "small"
    # Pings choose the same adapter; the gateway's own key opens no upstream.
    assert all(
        entry.get("adapter") is None or body.items() <= ping.items() for ping in small.pings()
    )
    assert {headers["authorization"] for headers in small.headers} == {"Bearer upstream-secret"}
    (seen,) = small.requests()
    assert {"model": "small-model", **body}.items() <= seen.items()
    assert not without & seen.keys()
    small.mode = "error"
    assert gateway.chat(**fields).status_code == 200
    assert large.requests()[0].get("top_k") == fields.get("top_k")
    assert "grammar" not in large.requests()[0]


@pytest.mark.parametrize(
    "name",
    [
        *("lora", "lora_request", "id_slot", "kv_transfer_params", "bootstrap_host", "priority"),
        *("custom_logit_processor", "prompt_embeds", "chat_template", "structured_outputs"),
        *("vllm_xargs", "grammar", "n_predict", "cache_prompt", "x" * 500),
    ],
)
def test_a_field_that_may_mean_anything_to_an_engine_is_refused_by_name(calm, small, name):
    response = calm(small).chat(**{name: 1})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"][:64]) == ("unknown_field", name[:64])
    assert f"`{name[:64]}" in error["message"]
    assert len(error["message"]) < 300
    assert small.requests() == []


def test_a_version_is_an_id_without_fallback(calm, small, large):
    stated = {"version": "7", "weights_sha256": "a" * 64}
    gateway = calm(upstream_entry(small, **stated), large, model={"id": "team/support"})
    assert set(gateway.models()) == {"team/support", "team/support@7"}
    for name in gateway.models():
        entry = gateway.client.get(f"/v1/models/{name}").json()
        assert entry["id"] == name
        assert stated.items() <= entry.items()
        assert gateway.chat(model=name).status_code == 200
    for answer in (gateway.client.get("/v1/models/other"), gateway.chat(model="team/support@8")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    # Logs and ledger know the model by its plain id; a made-up one becomes no series.
    for row in gateway.rows(2):
        assert (row["model"], row["model_version"]) == ("team/support", "7")
        assert row["weights_sha256"] == "a" * 64
    assert "support@8" not in gateway.metrics
    small.mode = "error"
    assert gateway.chat(model="team/support").headers["x-tuneline-served-by"] == "large"
    assert [row["model_version"] for row in gateway.rows(4)][2:] == ["7", None]
    pinned = gateway.chat(model="team/support@7")
    assert (pinned.status_code, "large" in pinned.headers["x-tuneline-attempts"]) == (502, False)


def test_an_id_of_the_configuration_is_left_to_it(start, small, large):
    models = [{"id": "support", "chain": ["small"]}, {"id": "support@7", "chain": ["large"]}]
    gateway = start(upstream_entry(small, version="7"), large, models=models)
    assert gateway.chat(model="support@7").headers["x-tuneline-served-by"] == "large"


def test_requests_beyond_the_limit_get_429(start, small):
    small.mode = "hang"
    gateway = start(small, max_in_flight=2)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(gateway.chat) for _ in range(2)]
        wait_for(lambda: len(small.requests()) == 2)
        refused = gateway.chat()
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        small.stop()
        assert all(future.result().status_code == 502 for future in waiting)


def test_a_client_that_leaves_a_stream_stops_the_upstream_and_is_estimated(start, small):
    small.words, small.token_delay_s = 500, 0.02
    gateway = start(small)
    with gateway.client.stream("POST", f"/v1/{CHAT}", json=ask(stream=True)) as response:
        seen = 0
        for chunk in response.iter_raw():
            seen += chunk.count(b"small-")
            if seen >= 5:
                break
    assert small.cut_off.wait(5)
    (row,) = gateway.rows(1)
    assert (row["status"], row["estimated"], row["served"]) == ("client_aborted", 1, 1)
    assert row["prompt_tokens"] == 9
    assert 5 <= row["completion_tokens"] < 20
    (totals,) = totals_by_upstream(gateway.ledger)
    assert totals.estimated_completion_tokens == row["completion_tokens"]
    # The upstream may have written a little more before it noticed; its own count says so.
    surplus = small.completion_tokens - totals.completion_tokens - row["completion_tokens"]
    assert 0 <= surplus <= 5
    assert 'status="499"' in gateway.metrics


def test_a_client_that_leaves_while_waiting_stops_the_upstream(start, small):
    small.mode = "hang"
    gateway = start(small)
    with pytest.raises(httpx.ReadTimeout):
        gateway.client.post(f"/v1/{CHAT}", json=ask(), timeout=0.3)
    (row,) = gateway.rows(1)
    assert (row["status"], row["served"], counts(row)) == ("client_aborted", 0, (9, 0, 1))
    assert small.cut_off.wait(5)
    assert gateway.runtime.in_flight == 0


def test_threads_of_the_gateway_end_with_it(start, small):
    gateway = start(small)
    names = {"usage ledger", "budgets"}
    assert names <= {thread.name for thread in threading.enumerate()}
    gateway.stop()
    assert not names & {thread.name for thread in threading.enumerate()}


STREAM = (
    b": keep-alive\n\ndata: one\n\nevent: x\ndata:two\nid: 7\n\n"
    b'data: {"a":\ndata: 1}\r\n\r\ndata: three \n\ndata: cut'
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_do_not_depend_on_where_a_stream_is_cut(size):
    parser = SseParser()
    pieces = (STREAM[start : start + size] for start in range(0, len(STREAM), size))
    found = [data for piece in pieces for data in parser.feed(piece)]
    assert found == [b"one", b"two", b'{"a":\n1}', b"three "]
    assert SseParser().feed(event(b'{"x": "y"}')) == [b'{"x": "y"}']


def test_a_real_engine(start, engine):
    measured = {"temperature": 0, "stop": ["END"], "chat_template_kwargs": {"thinking": False}}
    entry = {"name": "tiny", "base_url": f"{engine.url}/v1", "model": "tiny"}
    gateway = start({**entry, "system": "Be kind.", "defaults": measured})
    short = {"prompt": "a b", "max_tokens": 3, "ignore_eos": True}
    whole = gateway.post(TEXT, logprobs=1, **short)
    assert whole.json()["choices"][0]["logprobs"]["content"][0]["logprob"] < 0, whole.text
    _, events, _ = gateway.stream(TEXT, **short)
    assert [e["choices"][0]["finish_reason"] for e in events][-1] == "length"
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    shaped = gateway.chat(max_tokens=200, response_format=form)
    assert json.loads(shaped.json()["choices"][0]["message"]["content"])["a"] in (1, 2)
    _, several, _ = gateway.stream(n=2, max_tokens=6, ignore_eos=True)
    assert text_of(several)
    of_two = gateway.chat(n=2, max_tokens=6, ignore_eos=True)
    assert len(of_two.json()["choices"]) == 2
    rows = gateway.rows(5)
    assert [row["completion_tokens"] for row in rows[:2]] == [3, 3]
    assert (rows[3]["completion_tokens"], rows[3]["estimated"]) == (12, 0)
    assert (rows[4]["prompt_tokens"], rows[4]["estimated"]) == (rows[3]["prompt_tokens"], 1)
