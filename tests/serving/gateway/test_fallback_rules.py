"""Rules of the chain beyond plain faults: readiness, context, JSON, the time budget."""

import json

import pytest
from tests.lab.waiting import wait_for

from .conftest import QUIET, text_of, upstream_entry

SCHEMA = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
FORM = {"type": "json_schema", "json_schema": {"name": "order", "schema": SCHEMA}}


def test_an_upstream_that_is_known_to_be_out_is_passed_over(start, small, large):
    gateway = start(small, large, readiness=QUIET | {"ping_interval_s": 0.1})
    gateway.wait_all_ready()
    small.mode = "error"
    wait_for(lambda: gateway.states()["small"] == "HTTP 500")
    response = gateway.chat()
    assert response.headers["x-tuneline-served-by"] == "large"
    assert response.headers["x-tuneline-fallback-reason"] == "not_ready"
    assert response.headers["x-tuneline-attempts"] == "large"
    assert response.headers["x-tuneline-skipped"] == "small=not_ready"
    assert small.requests() == []
    (row,) = gateway.rows(1)
    assert (row["attempt"], row["fallback_reason"]) == (2, "not_ready")


def test_it_is_asked_after_all_where_nobody_else_answers(start, small, large):
    # The model list lacks what it serves, so it is not ready; it answers nevertheless.
    small.models = ["another"]
    gateway = start(small, large, readiness=QUIET | {"ping_interval_s": 0.1})
    wait_for(
        lambda: gateway.states()["large"] == "ready" and "not listed" in gateway.states()["small"]
    )
    large.mode = "busy"
    response = gateway.chat()
    assert response.headers["x-tuneline-served-by"] == "small"
    assert "x-tuneline-skipped" not in response.headers


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_goes_to_a_longer_context(calm, small, large, stream):
    gateway = calm(
        upstream_entry(small, context_tokens=100), upstream_entry(large, context_tokens=200)
    )
    small.mode = "too_long"
    response = gateway.chat(stream=stream)
    assert response.headers["x-tuneline-served-by"] == "large"
    assert response.headers["x-tuneline-fallback-reason"] == "context_overflow"
    left, _ = gateway.rows(2)
    assert (left["status"], left["prompt_tokens"]) == ("context_overflow", 0)


@pytest.mark.parametrize("stream", [False, True])
def test_no_longer_context_is_the_clients_error(calm, small, large, stream):
    gateway = calm(
        upstream_entry(small, context_tokens=100), upstream_entry(large, context_tokens=100)
    )
    small.mode = "too_long"
    response = gateway.chat(stream=stream)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "context is too long"
    assert large.requests() == []


def test_a_prompt_that_fits_nowhere_is_the_clients_error(calm, small, large):
    gateway = calm(small, large)
    small.mode = large.mode = "too_long"
    assert gateway.chat().status_code == 400
    assert [row["status"] for row in gateway.rows(2)] == ["context_overflow"] * 2


def test_an_answer_that_breaks_the_schema_falls_back(calm, small, large):
    gateway = calm(small, large)
    small.reply, large.reply = '{"id": "x"}', '{"id": 7}'
    response = gateway.chat(response_format=FORM)
    assert json.loads(response.json()["choices"][0]["message"]["content"]) == {"id": 7}
    assert response.headers["x-tuneline-fallback-reason"] == "invalid_json"
    left, served = gateway.rows(2)
    assert (left["status"], left["served"], left["completion_tokens"]) == ("invalid_json", 0, 5)
    assert served["status"] == "ok"


def test_an_answer_that_keeps_the_schema_stays(calm, small, large):
    gateway = calm(small, large)
    small.reply = '{"id": 7}'
    assert gateway.chat(response_format=FORM).headers["x-tuneline-served-by"] == "small"
    # Without a schema nobody looks for JSON.
    small.reply = "no JSON"
    assert gateway.chat().headers["x-tuneline-served-by"] == "small"
    assert large.requests() == []


def test_wrong_json_is_better_than_none(calm, small, large):
    gateway = calm(small, large)
    small.reply = "no JSON"
    large.mode = "busy"
    response = gateway.chat(response_format={"type": "json_object"})
    assert response.headers["x-tuneline-served-by"] == "small"
    assert {row["upstream"]: row["status"] for row in gateway.rows(2)} == {
        "small": "invalid_json",
        "large": "upstream_busy",
    }


LIMITS = {"min_mean_logprob": -1.0, "stream_window_tokens": 8}


def test_a_stream_that_fits_the_window_is_held_against_the_schema(calm, small, large):
    gateway = calm(small, large, model={"low_confidence": LIMITS})
    small.reply, large.reply = '{"id": "x"}', '{"id": 7}'
    response, events, done = gateway.stream(response_format=FORM)
    assert text_of(events) == '{"id": 7}'
    assert done
    assert response.headers["x-tuneline-fallback-reason"] == "invalid_json"


def test_a_stream_that_is_longer_than_the_window_is_not(calm, small, large):
    limits = LIMITS | {"stream_window_tokens": 3}
    gateway = calm(small, large, model={"low_confidence": limits})
    small.reply = "no JSON"
    response, _, _ = gateway.stream(response_format=FORM)
    assert response.headers["x-tuneline-served-by"] == "small"


def test_the_window_has_a_limit_of_its_own(calm, small, large):
    small.logprob = -0.5
    limits = {**LIMITS, "stream_window_tokens": 3, "stream_min_mean_logprob": -0.2}
    gateway = calm(small, large, model={"low_confidence": limits})
    assert gateway.chat().headers["x-tuneline-served-by"] == "small"
    response, _, _ = gateway.stream()
    assert response.headers["x-tuneline-served-by"] == "large"


@pytest.mark.parametrize("stream", [False, True])
def test_a_spent_budget_is_one_clean_error(calm, small, large, stream):
    gateway = calm(small, large, model={"budget_s": 0.5})
    small.mode = large.mode = "hang"
    response = gateway.chat(stream=stream)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "budget_spent"
    # Nothing was left for the second one.
    assert response.headers["x-tuneline-attempts"] == "small=budget_spent"
    assert large.requests() == []
    assert small.cut_off.wait(5)


def test_the_second_attempt_gets_what_is_left(calm, small, large):
    impatient = upstream_entry(small, answer_timeout_s=0.3)
    gateway = calm(impatient, large, model={"budget_s": 0.8})
    small.mode = large.mode = "hang"
    response = gateway.chat()
    assert response.headers["x-tuneline-attempts"] == "small=timeout, large=budget_spent"
    assert response.status_code == 504


def test_what_is_held_is_served_when_the_budget_is_spent(calm, small, large):
    small.logprob = -2.0
    gateway = calm(small, large, model={"low_confidence": LIMITS, "budget_s": 0.5})
    large.mode = "hang"
    assert gateway.chat().headers["x-tuneline-served-by"] == "small"


def test_hosts_outside_the_list_are_refused(write_config, small, tmp_path):
    from tuneline.errors import UserError
    from tuneline.serving.gateway.config import load_config

    far = {"name": "far", "base_url": "https://models.example.com/v1", "model": "m"}
    entries = [upstream_entry(small), far]
    assert load_config(write_config(entries, allowed_hosts=["models.example.com"]))
    with pytest.raises(UserError, match=r"called at models\.example\.com, which allowed_hosts"):
        load_config(write_config(entries, allowed_hosts=["engine"]))
