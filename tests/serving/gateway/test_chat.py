import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from tests.lab.waiting import wait_for

from tuneline.serving.gateway.ledger.reports import totals_by_upstream

from .conftest import ask, text_of, upstream_entry


def test_whole_answer_is_passed_on_and_billed(start, small):
    gateway = start(small)
    response = gateway.chat(max_tokens=3)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "small-0 small-1 small-2 "
    assert response.headers["x-tuneline-served-by"] == "small"
    assert "x-tuneline-fallback-reason" not in response.headers
    (row,) = gateway.rows(1)
    assert row["request_id"] == response.headers["x-request-id"]
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (3, 3, 0)
    assert row["cached_tokens"] == 1
    assert row["cost"] == pytest.approx(3 * 0.001 + 3 * 0.002)
    assert (row["key"], row["upstream"], row["model_served"]) == (
        "tester-0",
        "small",
        "small-model",
    )
    assert (row["status"], row["served"], row["attempt"]) == ("ok", 1, 1)
    assert row["ttft_ms"] is None
    assert row["latency_ms"] > 0


def test_stream_reports_usage_to_the_ledger_not_to_a_client_that_did_not_ask(start, small):
    gateway = start(small)
    response, events, done = gateway.stream()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-tuneline-served-by"] == "small"
    assert text_of(events) == "".join(f"small-{i} " for i in range(5))
    assert done
    assert not any("usage" in event for event in events)
    assert small.requests()[0]["stream_options"] == {"include_usage": True}
    (row,) = gateway.rows(1)
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (3, 5, 0)
    assert 0 < row["ttft_ms"] <= row["latency_ms"]


def test_stream_passes_usage_to_a_client_that_asked(start, small):
    _, events, done = start(small).stream(stream_options={"include_usage": True})
    assert events[-1]["usage"]["completion_tokens"] == 5
    assert done


def test_tokens_reach_the_client_while_the_upstream_still_writes(start, small):
    small.token_delay_s = 0.1
    gateway = start(small)
    with gateway.client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as response:
        chunks = [chunk for chunk in response.iter_raw() if b"small-" in chunk]
    assert len(chunks) == 5


def test_missing_usage_is_counted_here_and_marked(start, small):
    small.sends_usage = False
    gateway = start(small)
    gateway.chat()
    gateway.stream()
    whole, stream = gateway.rows(2)
    # 5 words of 8 bytes, 4 bytes a token; 5 chunks in the stream; 3 + 4 + 2 for the prompt.
    assert (whole["prompt_tokens"], whole["completion_tokens"], whole["estimated"]) == (9, 10, 1)
    assert (stream["prompt_tokens"], stream["completion_tokens"], stream["estimated"]) == (9, 5, 1)


def test_without_a_valid_key_nothing_is_served(start, small):
    gateway = start(small)
    for authorization in (None, "Bearer", "Bearer tl-wrong", "Basic dXNlcjpw", b"Bearer \xff\xfe"):
        headers = {} if authorization is None else {"authorization": authorization}
        for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models")):
            response = httpx.request(method, gateway.url + path, headers=headers, json=ask())
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
    assert small.requests() == []


def test_the_key_does_not_reach_the_upstream_but_its_own_does(start, small, monkeypatch):
    monkeypatch.setenv("SMALL_KEY", "upstream-secret")
    gateway = start(upstream_entry(small, api_key_env="SMALL_KEY"))
    assert gateway.chat().status_code == 200
    assert {headers["authorization"] for headers in small.headers} == {"Bearer upstream-secret"}


def test_adapter_fields_come_from_the_configuration_only(start, small):
    gateway = start(upstream_entry(small, extra_body={"lora": [{"id": 0, "scale": 1.0}]}))
    assert gateway.chat(temperature=0).status_code == 200
    (body,) = small.requests()
    assert body["lora"] == [{"id": 0, "scale": 1.0}]
    assert (body["temperature"], body["model"]) == (0, "small-model")


@pytest.mark.parametrize(
    "name",
    [
        *("lora", "lora_request", "id_slot", "kv_transfer_params", "bootstrap_host", "priority"),
        *("custom_logit_processor", "prompt_embeds", "chat_template", "structured_outputs"),
        *("vllm_xargs", "grammar", "n_predict", "cache_prompt", "x" * 500),
    ],
)
def test_a_field_that_may_mean_anything_to_an_engine_is_refused_by_name(calm, small, name):
    gateway = calm(small)
    response = gateway.chat(**{name: 1})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"][:64]) == ("unknown_field", name[:64])
    assert f"`{name[:64]}" in error["message"]
    assert len(error["message"]) < 300
    assert small.requests() == []


def test_each_upstream_gets_the_fields_that_it_takes(calm, small, large):
    gateway = calm(upstream_entry(small, fields=["grammar"]), large)
    small.mode = "error"
    openais = {"reasoning_effort": "low", "safety_identifier": "u1", "verbosity": "low"}
    assert gateway.chat(grammar="root ::= a", top_k=40, **openais).status_code == 200
    for server, own, others in ((small, "grammar", "top_k"), (large, "top_k", "grammar")):
        (body,) = server.requests()
        assert own in body
        assert others not in body
        assert openais.items() <= body.items()


def test_models_are_listed(start, small):
    listed = start(small).client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["support"]


def test_unknown_model_is_404(start, small):
    gateway = start(small)
    response = gateway.chat(model="other")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    # A made-up name must not become a new series of the metrics.
    assert "other" not in gateway.client.get("/metrics").text


def test_a_malformed_body_is_400_and_names_the_field(start, small):
    gateway = start(small)
    for content, word in (
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"model": "support", "messages": [], "x": NaN}', "JSON"),
        (b"[]", "object"),
        (b'{"messages": [{"role": "user"}]}', "model"),
        (b'{"model": "support"}', "messages"),
        (b'{"model": "support", "messages": []}', "messages"),
        (b'{"model": "support", "messages": ["hi"]}', "messages[0]"),
        (b'{"model": "support", "messages": [{"role": "user"}], "stream": 1}', "stream"),
        (b'{"model": "support", "messages": [{"role": "u"}], "stream_options": 1}', "stream_opt"),
    ):
        response = gateway.client.post("/v1/chat/completions", content=content)
        assert response.status_code == 400, content[:50]
        assert word in response.json()["error"]["message"]
    assert small.requests() == []


def test_a_body_over_the_limit_is_413_declared_or_not(start, small):
    gateway = start(small, max_body_bytes=1000)
    body = json.dumps(ask(messages=[{"role": "user", "content": "x" * 2000}])).encode()
    declared = gateway.client.post("/v1/chat/completions", content=body)
    chunked = gateway.client.post("/v1/chat/completions", content=iter([body[:900], body[900:]]))
    assert (declared.status_code, chunked.status_code) == (413, 413)
    assert small.requests() == []


def test_errors_of_paths_and_methods_have_openais_shape(start, small):
    client = start(small).client
    assert client.get("/nowhere").json()["error"]["type"] == "invalid_request_error"
    wrong = client.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert "error" in wrong.json()


def test_the_clients_own_mistake_is_passed_back_without_fallback(calm, small, large):
    gateway = calm(small, large)
    small.mode = "bad_request"
    for response in (gateway.chat(), gateway.chat(stream=True)):
        assert response.status_code == 400
        assert response.json()["error"]["message"] == "top_k must be a number"
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert large.requests() == []
    assert [row["status"] for row in gateway.rows(2)] == ["client_error"] * 2


def test_requests_beyond_the_limit_get_429(start, small):
    small.mode = "hang"
    gateway = start(small, max_in_flight=2)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(gateway.chat) for _ in range(2)]
        wait_for(lambda: len(small.requests()) == 2)
        refused = gateway.chat()
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        small.stop()
        assert all(future.result().status_code == 502 for future in waiting)


def test_many_at_once_are_all_answered_and_billed(start, small):
    gateway = start(small)
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(gateway.chat, stream=bool(i % 2)) for i in range(60)]
        assert {future.result().status_code for future in futures} == {200}
    rows = gateway.rows(60)
    assert sum(row["completion_tokens"] for row in rows) == 300


def test_a_client_that_leaves_a_stream_stops_the_upstream_and_is_estimated(start, small):
    small.words, small.token_delay_s = 500, 0.02
    gateway = start(small)
    with gateway.client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as response:
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
    assert 'status="499"' in gateway.client.get("/metrics").text


def test_a_client_that_leaves_while_waiting_stops_the_upstream(start, small):
    small.mode = "hang"
    gateway = start(small)
    with pytest.raises(httpx.ReadTimeout):
        gateway.client.post("/v1/chat/completions", json=ask(), timeout=0.3)
    (row,) = gateway.rows(1)
    assert (row["status"], row["estimated"], row["served"]) == ("client_aborted", 1, 0)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (9, 0)
    assert small.cut_off.wait(5)
    assert gateway.runtime.in_flight == 0


def test_a_new_key_works_without_a_restart(start, small, tmp_path):
    from tuneline.serving.gateway.accounts.keys import add_key

    gateway = start(small)
    fresh = add_key(tmp_path / "keys.json", "late")
    headers = {"authorization": f"Bearer {fresh}"}
    gateway.follow_keys()
    assert gateway.client.get("/v1/models", headers=headers).status_code == 200


def test_metrics_count_what_happened(start, small):
    gateway = start(small)
    gateway.chat()
    gateway.stream()
    gateway.rows(2)
    gateway.wait_ready()

    def text() -> str:
        return gateway.client.get("/metrics").text

    wait_for(lambda: 'tuneline_gateway_requests_total{model="support",status="200"} 2' in text())
    assert 'tuneline_gateway_request_seconds_count{model="support",stream="true"} 1' in text()
    assert 'tuneline_gateway_time_to_first_token_seconds_count{upstream="small"} 1' in text()
    assert "tuneline_gateway_ready 1" in text()
    assert gateway.key not in text()


def test_a_full_ledger_refuses_what_it_could_not_count(start, small, tmp_path, monkeypatch):
    import sqlite3

    # Without pings, whose rows would fill so short a queue too.
    gateway = start(
        upstream_entry(small, ping=False),
        ledger={"path": "usage.db", "flush_interval_s": 0.02, "queue_limit": 3},
    )
    assert gateway.chat().status_code == 200
    gateway.rows(1)
    blocker = sqlite3.connect(tmp_path / "usage.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr("tuneline.serving.gateway.app.completions._LEDGER_PATIENCE_S", 0.1)
    statuses = [gateway.chat().status_code for _ in range(8)]
    assert statuses[:3] == [200] * 3
    assert statuses[-1] == 503
    blocker.execute("ROLLBACK")
    blocker.close()
    wait_for(lambda: gateway.chat().status_code == 200)
    served = gateway.runtime.metrics.text()
    assert 'status="503"' in served
    wait_for(lambda: gateway.runtime.ledger.pending == 0)
    # All that was answered was also written.
    gateway.rows(1 + statuses.count(200) + 1)


def test_threads_of_the_gateway_end_with_it(start, small):
    gateway = start(small)
    names = {"usage ledger", "budgets"}
    assert names <= {thread.name for thread in threading.enumerate()}
    gateway.stop()
    assert not names & {thread.name for thread in threading.enumerate()}
