import pytest

from .conftest import text_of, upstream_entry

LIMITS = {"min_mean_logprob": -1.0}
FAST = {"answer_timeout_s": 0.3, "first_token_timeout_s": 0.3, "idle_timeout_s": 0.3}


@pytest.mark.parametrize("stream", [False, True])
def test_an_upstream_that_is_not_there(calm, small, large, stream):
    gateway = calm(upstream_entry(small, name="dead"), large)
    small.stop()
    response = gateway.chat(stream=stream)
    assert response.status_code == 200
    assert "large-0" in response.text
    assert response.headers["x-tuneline-served-by"] == "large"
    assert response.headers["x-tuneline-fallback-reason"] == "connect_error"
    assert response.headers["x-tuneline-attempts"] == "dead=connect_error, large"
    left, served = gateway.rows(2)
    assert left["request_id"] == served["request_id"]
    assert (left["status"], left["served"], left["prompt_tokens"]) == ("connect_error", 0, 0)
    assert (left["attempt"], left["fallback_reason"]) == (1, None)
    assert (served["attempt"], served["fallback_reason"]) == (2, "connect_error")
    assert (served["status"], served["served"]) == ("ok", 1)
    metrics = gateway.client.get("/metrics").text
    assert 'tuneline_gateway_fallbacks_total{model="support",reason="connect_error"} 1' in metrics


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("hang", "timeout"),
        ("error", "upstream_5xx"),
        ("busy", "upstream_busy"),
        ("refuse", "upstream_refused"),
        ("die_before", "connection_lost"),
    ],
)
def test_each_fault_before_the_first_byte(calm, small, large, mode, reason, stream):
    gateway = calm(upstream_entry(small, **FAST), large)
    small.mode = mode
    response = gateway.chat(stream=stream)
    assert response.status_code == 200
    assert "large-4" in response.text
    assert "small-" not in response.text
    assert response.headers["x-tuneline-fallback-reason"] == reason
    assert [row["status"] for row in gateway.rows(2)] == [reason, "ok"]


@pytest.mark.parametrize(
    ("mode", "stream", "reason"),
    [("garbage", False, "bad_response"), ("error_event", True, "upstream_5xx")],
)
def test_answers_that_are_none(calm, small, large, mode, stream, reason):
    gateway = calm(small, large)
    small.mode = mode
    response = gateway.chat(stream=stream)
    assert "large-4" in response.text
    assert response.headers["x-tuneline-fallback-reason"] == reason


def test_low_confidence_falls_back_and_bills_both(start, small, large):
    small.logprob = -2.0
    gateway = start(small, large, model={"low_confidence": LIMITS})
    response = gateway.chat()
    assert response.headers["x-tuneline-served-by"] == "large"
    assert response.headers["x-tuneline-fallback-reason"] == "low_confidence"
    left, served = gateway.rows(2)
    assert (left["status"], left["completion_tokens"], left["served"]) == ("low_confidence", 5, 0)
    assert left["mean_logprob"] == pytest.approx(-2.0)
    assert left["cost"] > 0
    assert served["completion_tokens"] == 5
    # The last of the chain is not judged, so it is not asked for log-probabilities.
    assert "logprobs" not in large.requests()[0]


def test_a_confident_answer_stays_and_hides_the_logprobs_we_asked_for(start, small, large):
    gateway = start(small, large, model={"low_confidence": LIMITS})
    response = gateway.chat()
    assert response.headers["x-tuneline-served-by"] == "small"
    assert small.requests()[0]["logprobs"] is True
    assert "logprobs" not in response.json()["choices"][0]
    asked = gateway.chat(logprobs=True)
    assert len(asked.json()["choices"][0]["logprobs"]["content"]) == 5
    assert large.requests() == []


def test_unknown_confidence_is_counted_and_not_low(start, small, large):
    small.sends_logprobs = False
    gateway = start(small, large, model={"low_confidence": LIMITS})
    assert gateway.chat().headers["x-tuneline-served-by"] == "small"
    metrics = gateway.client.get("/metrics").text
    assert 'tuneline_gateway_confidence_unknown_total{upstream="small"} 1' in metrics


def test_a_doubtful_answer_is_better_than_none(calm, small, large):
    small.logprob = -2.0
    gateway = calm(small, upstream_entry(large, name="dead"), model={"low_confidence": LIMITS})
    large.stop()
    response = gateway.chat()
    assert response.status_code == 200
    assert response.headers["x-tuneline-served-by"] == "small"
    statuses = {row["upstream"]: (row["status"], row["served"]) for row in gateway.rows(2)}
    assert statuses == {"small": ("low_confidence", 1), "dead": ("connect_error", 0)}


def test_a_streams_window_is_held_back_and_judged(start, small, large):
    small.logprob, small.words, small.token_delay_s = -2.0, 100, 0.02
    limits = LIMITS | {"stream_window_tokens": 4}
    gateway = start(small, large, model={"low_confidence": limits})
    response, events, done = gateway.stream()
    assert text_of(events) == "".join(f"large-{i} " for i in range(5))
    assert done
    assert response.headers["x-tuneline-fallback-reason"] == "low_confidence"
    assert response.headers["x-tuneline-attempts"] == "small=low_confidence, large"
    left, _ = gateway.rows(2)
    # Its generation was cut off, so its usage never came.
    assert (left["status"], left["estimated"], left["completion_tokens"]) == (
        "low_confidence",
        1,
        4,
    )
    assert small.cut_off.wait(5)


def test_a_confident_stream_loses_nothing_to_the_window(start, small, large):
    limits = LIMITS | {"stream_window_tokens": 3}
    response, events, done = start(small, large, model={"low_confidence": limits}).stream()
    assert response.headers["x-tuneline-served-by"] == "small"
    assert text_of(events) == "".join(f"small-{i} " for i in range(5))
    assert not any("logprobs" in event["choices"][0] for event in events)
    assert done


def test_a_stream_shorter_than_the_window_is_judged_as_a_whole(start, small, large):
    small.words, small.logprob = 2, -2.0
    limits = LIMITS | {"stream_window_tokens": 50}
    response, _, _ = start(small, large, model={"low_confidence": limits}).stream()
    assert response.headers["x-tuneline-served-by"] == "large"


def test_a_doubtful_stream_is_better_than_none(calm, small, large):
    small.logprob = -2.0
    limits = LIMITS | {"stream_window_tokens": 3}
    gateway = calm(small, upstream_entry(large, name="dead"), model={"low_confidence": limits})
    large.stop()
    response, events, done = gateway.stream()
    assert response.headers["x-tuneline-served-by"] == "small"
    assert text_of(events) == "".join(f"small-{i} " for i in range(5))
    assert done
    statuses = {row["upstream"]: row["status"] for row in gateway.rows(2)}
    assert statuses == {"small": "low_confidence", "dead": "connect_error"}


@pytest.mark.parametrize("mode", ["die_after", "stall_after"])
def test_after_the_first_byte_there_is_no_way_back(calm, small, large, mode):
    gateway = calm(upstream_entry(small, **FAST), large)
    small.mode = mode
    response, events, done = gateway.stream()
    assert response.status_code == 200
    assert text_of(events) == "small-0 small-1 "
    assert events[-1]["error"]["type"] == "server_error"
    assert not done
    assert large.requests() == []
    (row,) = gateway.rows(1)
    assert (row["status"], row["completion_tokens"], row["estimated"]) == ("died_midstream", 2, 1)


def test_nobody_answers(calm, small, large):
    gateway = calm(upstream_entry(large, name="dead"), small)
    small.mode = "error"
    large.stop()
    response = gateway.chat()
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_5xx"
    assert response.headers["x-tuneline-attempts"] == "dead=connect_error, small=upstream_5xx"
    # Who is known to be out is asked last, since nobody else answers.
    again = gateway.chat(stream=True)
    assert again.status_code == 502
    assert set(again.headers["x-tuneline-attempts"].split(", ")) == {
        "dead=connect_error",
        "small=upstream_5xx",
    }
    assert {row["served"] for row in gateway.rows(4)} == {0}


def test_a_timeout_of_the_last_is_504(start, small):
    small.mode = "hang"
    assert start(upstream_entry(small, **FAST)).chat().status_code == 504
