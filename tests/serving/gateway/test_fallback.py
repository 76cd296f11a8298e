"""When an upstream is left for the next one, passed over, or has to do; circuits and confidence."""

import asyncio
import itertools
import json

import pytest
from tests.lab.waiting import wait_for

from tuneline.serving.gateway.attempt_status import AttemptStatus
from tuneline.serving.gateway.chain.acceptance import is_low
from tuneline.serving.gateway.chain.upstream import Breaker, Circuit
from tuneline.serving.gateway.upstream_config import BreakerConfig, LowConfidenceConfig
from tuneline.serving.protocol import LONGEST_EVENT, SseParser, mean_logprob, token_logprobs

from .conftest import QUIET, text_of, upstream_entry

FAST = {"answer_timeout_s": 0.3, "first_token_timeout_s": 0.3, "idle_timeout_s": 0.3}
LIMITS = {"min_mean_logprob": -1.0, "stream_window_tokens": 8}
JUDGED = {"low_confidence": LIMITS}
SCHEMA = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
FORM = {"type": "json_schema", "json_schema": {"name": "order", "schema": SCHEMA}}
OBJECT = {"response_format": {"type": "json_object"}}
SCHEMED = {"response_format": FORM}
EAGER = {"readiness": QUIET | {"ping_interval_s": 0.1}}


def reason(response) -> str | None:
    return response.headers.get("x-tuneline-fallback-reason")


def served_by(response) -> str | None:
    return response.headers.get("x-tuneline-served-by")


def become(server, state: dict) -> None:
    """Give a server a behaviour; `stop` ends it."""
    for name, value in state.items():
        server.stop() if name == "stop" else setattr(server, name, value)


WHOLE, STREAM, BOTH = [False], [True], [False, True]
LEFT = [
    (BOTH, {"stop": True}, {}, "connect_error"),
    (BOTH, {"mode": "hang"}, {}, "timeout"),
    (BOTH, {"mode": "error"}, {}, "upstream_5xx"),
    (BOTH, {"mode": "busy"}, {}, "upstream_busy"),
    (BOTH, {"mode": "refuse"}, {}, "upstream_refused"),
    (BOTH, {"mode": "die_before"}, {}, "connection_lost"),
    (WHOLE, {"mode": "garbage"}, {}, "bad_response"),
    (STREAM, {"mode": "error_event"}, {}, "upstream_5xx"),
    (BOTH, {"mode": "too_long"}, {}, "context_overflow"),
    (BOTH, {"logprob": -2.0}, {}, "low_confidence"),
    # Shorter than the window, so it is judged as a whole.
    (STREAM, {"logprob": -2.0, "words": 2}, {}, "low_confidence"),
    (BOTH, {"reply": '{"id": "x"'}, SCHEMED, "invalid_json"),
    (BOTH, {"reply": "[7]"}, OBJECT, "invalid_json"),
]
# The prompt is not read, or not to the end.
UNREAD = {"connect_error", "upstream_5xx", "upstream_busy", "upstream_refused", "context_overflow"}


@pytest.mark.parametrize(
    ("stream", "state", "fields", "why"),
    [(stream, *case) for kinds, *case in LEFT for stream in kinds],
)
def test_an_upstream_that_is_left(calm, small, large, stream, state, fields, why):
    first = upstream_entry(small, context_tokens=100, **FAST)
    gateway = calm(first, upstream_entry(large, context_tokens=200), model=JUDGED)
    become(small, state)
    if fields:
        large.reply = '{"id": 7}'
    response = gateway.chat(stream=stream, **fields)
    assert response.status_code == 200
    assert ('{\\"id\\": 7}' if fields else "large-4") in response.text
    assert "small-" not in response.text
    assert (served_by(response), reason(response)) == ("large", why)
    assert response.headers["x-tuneline-attempts"] == f"small={why}, large"
    left, served = gateway.rows(2)
    assert left["request_id"] == served["request_id"]
    assert (left["status"], left["attempt"], left["fallback_reason"]) == (why, 1, None)
    assert (served["status"], served["attempt"], served["fallback_reason"]) == ("ok", 2, why)
    assert (left["served"], served["served"]) == (0, 1)
    # What an engine did is billed, be it served or not.
    assert bool(left["prompt_tokens"]) is bool(left["cost"]) is (why not in UNREAD)
    assert f'fallbacks_total{{model="support",reason="{why}"}} 1' in gateway.metrics
    # The last of the chain is not judged, so it is not asked for log-probabilities.
    assert "logprobs" not in large.requests()[0]


@pytest.mark.parametrize("stream", [False, True])
def test_older_completions_are_judged_and_left_too(start, small, large, stream):
    gateway = start(small, large, model=JUDGED)
    for state, why in (({"logprob": -2.0}, "low_confidence"), ({"mode": "error"}, "upstream_5xx")):
        become(small, state)
        assert reason(gateway.post("completions", prompt="a", stream=stream)) == why
    assert small.requests()[0]["logprobs"] == 1


@pytest.mark.parametrize(
    ("limits", "state", "fields", "stream"),
    [
        ({}, {}, {}, False),
        ({}, {}, {}, True),
        ({"stream_window_tokens": 3}, {}, {}, True),
        # What nobody knows is not low, and a form is judged where one was asked for.
        ({}, {"sends_logprobs": False}, {}, False),
        ({}, {"reply": '{"id": 7}'}, OBJECT, False),
        # Its schema is the engine's to keep, and what is long would hold up other requests.
        ({}, {"reply": '{"id": "x"}'}, SCHEMED, False),
        ({}, {"reply": "no JSON" * 200_000}, SCHEMED, False),
        ({}, {"reply": "no JSON"}, {}, False),
        # Longer than the window.
        ({"stream_window_tokens": 3}, {"reply": "no JSON"}, SCHEMED, True),
        # The beginning of a stream has its own limit.
        (
            {"stream_window_tokens": 3, "stream_min_mean_logprob": -0.2},
            {"logprob": -0.5},
            {},
            False,
        ),
    ],
)
def test_an_answer_that_is_trusted(start, small, large, limits, state, fields, stream):
    gateway = start(small, large, model={"low_confidence": {**LIMITS, **limits}})
    become(small, state)
    response = gateway.chat(stream=stream, **fields)
    assert (served_by(response), reason(response)) == ("small", None)
    # Log-probabilities are asked for and hidden, unless the client wants them.
    assert small.requests()[0]["logprobs"] is True
    assert '"logprobs"' not in response.text
    wanted = gateway.chat(stream=stream, logprobs=True, **fields)
    assert ('"logprob"' in wanted.text) is small.sends_logprobs
    assert large.requests() == []
    unknown = 'confidence_unknown_total{upstream="small"} 2'
    assert (unknown in gateway.metrics) is not small.sends_logprobs
    if "stream_min_mean_logprob" in limits:
        assert served_by(gateway.chat(stream=True)) == "large"


def test_older_completions_keep_the_logprobs_that_were_asked_for(start, small, large):
    gateway = start(small, large, model=JUDGED)
    assert "logprobs" not in gateway.post("completions", prompt="a").json()["choices"][0]
    assert gateway.post("completions", prompt="a", logprobs=0).status_code == 200
    assert small.requests()[-1]["logprobs"] == 0


@pytest.mark.parametrize(
    ("state", "other", "fields", "why"),
    [
        ({"logprob": -2.0}, {"stop": True}, {}, "low_confidence"),
        ({"logprob": -2.0}, {"stop": True}, {"stream": True}, "low_confidence"),
        ({"logprob": -2.0}, {"mode": "hang"}, {}, "low_confidence"),
        ({"reply": "no JSON"}, {"mode": "busy"}, OBJECT, "invalid_json"),
    ],
)
def test_a_doubtful_answer_is_better_than_none(calm, small, large, state, other, fields, why):
    """Be the other one out, busy, or silent until the time of the request is spent."""
    limits = {"budget_s": 0.5} if other.get("mode") == "hang" else {}
    gateway = calm(small, large, model={**JUDGED, **limits})
    become(small, state)
    become(large, other)
    response = gateway.chat(**fields)
    assert (response.status_code, served_by(response)) == (200, "small")
    rows = {row["upstream"]: (row["status"], row["served"]) for row in gateway.rows(2)}
    assert rows["small"] == (why, 1)
    assert rows["large"][1] == 0


def test_a_streams_window_is_held_back_and_the_rest_cut_off(start, small, large):
    small.logprob, small.words, small.token_delay_s = -2.0, 100, 0.02
    gateway = start(small, large, model={"low_confidence": LIMITS | {"stream_window_tokens": 4}})
    _, events, done = gateway.stream()
    assert (text_of(events), done) == ("".join(f"large-{i} " for i in range(5)), True)
    left, _ = gateway.rows(2)
    # Its usage never came.
    assert (left["status"], left["estimated"]) == ("low_confidence", 1)
    assert left["completion_tokens"] == 4
    assert small.cut_off.wait(5)


NOBODY = [
    # First and second upstream, their limits; status, code and attempts.
    ({"stop": True}, {"mode": "error"}, {}, 502, "upstream_5xx", "connect_error"),
    ({"mode": "hang"}, {"mode": "busy"}, {}, 503, "upstream_busy", "timeout"),
    ({"mode": "busy"}, {"mode": "hang"}, {}, 504, "timeout", "upstream_busy"),
    ({"mode": "hang"}, {"mode": "hang"}, {"budget_s": 0.4}, 504, "budget_spent", "timeout"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("state", "other", "model", "status", "code", "first"), NOBODY)
def test_nobody_answers(calm, small, large, stream, state, other, model, status, code, first):
    entries = [upstream_entry(server, **FAST) for server in (small, large)]
    gateway = calm(*entries, model=model)
    become(small, state)
    become(large, other)
    response = gateway.chat(stream=stream)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.headers["x-tuneline-attempts"] == f"small={first}, large={code}"
    assert {row["served"] for row in gateway.rows(2)} == {0}


@pytest.mark.parametrize("stream", [False, True])
def test_a_spent_budget_leaves_nothing_to_the_second(calm, small, large, stream):
    gateway = calm(small, large, model={"budget_s": 0.5})
    small.mode = large.mode = "hang"
    response = gateway.chat(stream=stream)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "budget_spent")
    assert response.headers["x-tuneline-attempts"] == "small=budget_spent"
    assert large.requests() == []
    assert small.cut_off.wait(5)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("mode", "longer", "said", "asked"),
    [
        ("bad_request", 200, "top_k must be a number", ["client_error"]),
        ("too_long", 100, "context is too long", ["context_overflow"]),
        ("too_long", 200, "context is too long", ["context_overflow"] * 2),
    ],
)
def test_the_clients_own_mistake_is_passed_back(
    calm, small, large, mode, longer, said, asked, stream
):
    """Without a fallback, unless another one has a longer context."""
    contexts = [(small, 100), (large, longer)]
    gateway = calm(*(upstream_entry(server, context_tokens=size) for server, size in contexts))
    small.mode = large.mode = mode
    response = gateway.chat(stream=stream)
    assert (response.status_code, response.json()["error"]["message"]) == (400, said)
    assert response.json()["error"]["type"] in (
        "invalid_request_error",
        "exceed_context_size_error",
    )
    assert [row["status"] for row in gateway.rows(len(asked))] == asked


def test_an_upstream_that_is_known_to_be_out_is_passed_over(start, small, large):
    gateway = start(small, large, **EAGER)
    gateway.wait_all_ready()
    small.mode = "error"
    wait_for(lambda: gateway.states()["small"] == "HTTP 500")
    response = gateway.chat()
    assert (served_by(response), reason(response)) == ("large", "not_ready")
    assert response.headers["x-tuneline-attempts"] == "large"
    assert response.headers["x-tuneline-skipped"] == "small=not_ready"
    assert small.requests() == []
    (row,) = gateway.rows(1)
    assert (row["attempt"], row["fallback_reason"]) == (2, "not_ready")


def test_it_is_asked_after_all_where_nobody_else_answers(start, small, large):
    # The model list lacks what it serves, so it is not ready; it answers nevertheless.
    small.models = ["another"]
    gateway = start(small, large, **EAGER)
    wait_for(
        lambda: gateway.states()["large"] == "ready" and "not listed" in gateway.states()["small"]
    )
    large.mode = "busy"
    response = gateway.chat()
    assert served_by(response) == "small"
    assert "x-tuneline-skipped" not in response.headers


# What no engine sends: each is left, or ended, and counts as a failure.
IMPATIENT = {
    "first_token_timeout_s": 0.5,
    "idle_timeout_s": 0.5,
    "max_answer_bytes": 3_000_000,
    "breaker": {"failures": 1, "open_s": 60},
}


def event(**fields: object) -> bytes:
    choice = {"index": 0, "delta": {"content": "a"}, **fields}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


TOKEN, EMPTY = event(), event(delta={"content": ""})
END = event(delta={}, finish_reason="stop") + b"data: [DONE]\n\n"


def sent(*pieces: bytes, last: bytes = b"", pause_s: float = 0.0) -> object:
    """A stream of some pieces, then of the last one for ever."""

    async def stream():
        for piece in itertools.chain(pieces, itertools.repeat(last) if last else ()):
            yield piece
            await asyncio.sleep(pause_s)

    return stream


NO_CHOICES, FLOOD = b'data: {"choices": 5}\n\n', sent(last=TOKEN, pause_s=0.02)


def circuit(gateway) -> str:
    return gateway.probe()["circuits"]["small"]


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"content": "{}"}, "logprobs": {"content": 5}},
        {"message": {"content": "{}"}, "logprobs": {"content": [{"logprob": 10**400}]}},
    ],
)
def test_a_whole_answer_that_makes_no_sense_falls_back(calm, small, large, choice):
    gateway = calm(upstream_entry(small, **IMPATIENT), large, model=JUDGED)
    small.body, large.reply = json.dumps({"choices": [choice]}).encode(), "{}"
    response = gateway.chat(**OBJECT)
    assert (response.status_code, reason(response)) == (200, "bad_response")
    assert [row["status"] for row in gateway.rows(2)] == ["bad_response", "ok"]
    assert circuit(gateway) == "open"


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (sent(NO_CHOICES), "bad_response"),
        (sent(event(logprobs={"content": 5})), "bad_response"),
        (sent(event(index=[]), END), "bad_response"),
        # 3 MB, a line that does not end, and an event of very many lines.
        (sent(last=b"a" * 65_536), "bad_response"),
        (sent(last=b"data:\n" * 10_000), "bad_response"),
        (sent(b"data: " + b"a" * LONGEST_EVENT), "bad_response"),
        # Nothing of it is a token.
        (sent(last=EMPTY, pause_s=0.05), "timeout"),
        (sent(last=b": still here\n\n", pause_s=0.05), "timeout"),
    ],
)
def test_a_stream_that_makes_no_sense_falls_back(calm, small, large, stream, why):
    gateway = calm(upstream_entry(small, **IMPATIENT), large, model=JUDGED)
    small.pieces, large.reply = stream, "{}"
    response, events, done = gateway.stream(**OBJECT)
    assert reason(response) == why
    assert (text_of(events), done) == ("{}", True)
    assert circuit(gateway) == "open"


@pytest.mark.parametrize(
    ("state", "limits", "fields", "text", "code"),
    [
        ({"mode": "die_after"}, {}, {}, "small-0 small-1 ", "connection_lost"),
        ({"mode": "stall_after"}, {}, {}, "small-0 small-1 ", "timeout"),
        ({"mode": "die_between"}, {}, {"n": 2}, "small-0 small-0 ", "connection_lost"),
        ({"pieces": sent(TOKEN, last=EMPTY, pause_s=0.05)}, {}, {}, "a", "timeout"),
        ({"pieces": sent(last=TOKEN, pause_s=0.05)}, {"stream_timeout_s": 1.0}, {}, "a", "timeout"),
        ({"pieces": FLOOD}, {"max_answer_bytes": 20_000}, {}, "a", "bad_response"),
        ({"pieces": sent(TOKEN, NO_CHOICES, pause_s=0.4)}, {}, {}, "a", "bad_response"),
    ],
)
def test_after_the_first_byte_there_is_no_way_back(
    calm, small, large, state, limits, fields, text, code
):
    gateway = calm(upstream_entry(small, **{**IMPATIENT, **limits}), large)
    become(small, state)
    response, events, done = gateway.stream(**fields)
    assert (response.status_code, done) == (200, False)
    assert text_of(events).startswith(text)
    assert (events[-1]["error"]["type"], events[-1]["error"]["code"]) == ("server_error", code)
    assert large.requests() == []
    (row,) = gateway.rows(1)
    assert (row["status"], row["estimated"]) == ("died_midstream", 1)
    assert circuit(gateway) == "open"


def test_an_event_of_two_lines_is_passed_on_whole(calm, small, large):
    gateway = calm(small, large)
    first, rest = TOKEN.split(b" [", 1)
    small.pieces = sent(first + b"\ndata: [" + rest, END)
    response = gateway.chat(stream=True)
    token, end, done = SseParser().feed(response.content)
    assert json.loads(token) == json.loads(TOKEN.removeprefix(b"data: "))
    assert json.loads(end)["choices"][0]["finish_reason"] == "stop"
    assert done == b"[DONE]"


MEAN = LowConfidenceConfig(min_mean_logprob=-1.0)
WEAKEST = LowConfidenceConfig(min_mean_logprob=-1.0, min_token_logprob=-3.0)


@pytest.mark.parametrize(
    ("values", "limits", "low"),
    [
        ([-0.5, -1.5], MEAN, False),
        ([-0.5, -1.6], MEAN, True),
        ([-0.1] * 50 + [-4.0], MEAN, False),
        ([-0.1] * 50 + [-4.0], WEAKEST, True),
        ([], WEAKEST, False),
    ],
)
def test_mean_and_weakest_token_decide(values, limits, low):
    assert is_low(values, limits) is low
    assert mean_logprob(values) == (pytest.approx(sum(values) / len(values)) if values else None)


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        *((none, []) for none in (None, {}, {"logprobs": None}, {"logprobs": {"content": None}})),
        ({"logprobs": {"content": [1]}}, []),
        (
            {"logprobs": {"content": [{"token": "a", "logprob": -0.25}, {"logprob": -2}]}},
            [-0.25, -2],
        ),
        # Numbers that no ledger takes.
        (json.loads('{"logprobs": {"content": [{"logprob": -1e999}, {"logprob": -0.5}]}}'), [-0.5]),
    ],
)
def test_the_logprobs_of_a_choice(choice, found):
    assert token_logprobs(choice) == found


OK, LATE, BROKEN = AttemptStatus.OK, AttemptStatus.TIMEOUT, AttemptStatus.DIED_MIDSTREAM
OPEN, CLOSED, HALF_OPEN = Circuit.OPEN, Circuit.CLOSED, Circuit.HALF_OPEN
DEAD = [(0, AttemptStatus.CONNECT_ERROR)] * 3
NO_FAILURES = [
    *(AttemptStatus.LOW_CONFIDENCE, AttemptStatus.INVALID_JSON, AttemptStatus.CLIENT_ERROR),
    *(AttemptStatus.CONTEXT_OVERFLOW, AttemptStatus.CLIENT_ABORTED, AttemptStatus.BUDGET_SPENT),
    AttemptStatus.UPSTREAM_BUSY,
]


@pytest.mark.parametrize(
    ("ends", "at", "state"),
    [
        # Three in a row open it; a success starts anew.
        ([(0, end) for end in (LATE, LATE, OK, LATE, BROKEN)], 0, CLOSED),
        ([(0, end) for end in (LATE, LATE, OK, LATE, BROKEN, AttemptStatus.UPSTREAM_5XX)], 0, OPEN),
        # Half of the six within ten seconds open it too; older ones no longer count.
        ([(0, OK), (0, LATE)] * 3, 0, OPEN),
        ([(0, LATE), (0, OK)] * 2 + [(11, e) for e in (OK, LATE, OK, LATE, OK)], 11, CLOSED),
        ([(0, LATE), (0, OK)] * 2 + [(11, e) for e in (OK, LATE, OK, LATE, OK, LATE)], 11, OPEN),
        *(([(0, end)] * 20, 0, CLOSED) for end in NO_FAILURES),
        # Half open after five seconds, one request tries it.
        (DEAD, 4, OPEN),
        (DEAD, 5, HALF_OPEN),
        ([*DEAD, (5, LATE)], 5, OPEN),
        ([*DEAD, (5, LATE), (10, OK)], 10, CLOSED),
        ([*DEAD, (5, OK), (5, LATE)], 5, CLOSED),
        # One that says nothing lets the next one try.
        ([*DEAD, (5, AttemptStatus.CLIENT_ABORTED)], 5, HALF_OPEN),
    ],
)
def test_what_opens_a_circuit_and_closes_it(ends, at, state):
    now = [0.0]
    limits = {"failures": 3, "error_share": 0.5, "window_s": 10, "window_requests": 6, "open_s": 5}
    breaker = Breaker(BreakerConfig(**limits), lambda: now[0])
    for now[0], end in ends:
        assert breaker.passes
        breaker.end(end, trial=breaker.begin())
    now[0] = at
    assert breaker.state is state
    assert breaker.passes is (state is not OPEN)
    assert breaker.retry_after_s() == (5 if state is OPEN and at != 4 else 1 if at == 4 else 0)
    if state is HALF_OPEN:
        assert breaker.begin()
        assert not breaker.passes


def test_requests_sent_before_it_opened_decide_nothing():
    breaker = Breaker(BreakerConfig(failures=3))
    early = [breaker.begin() for _ in range(4)]
    for trial, end in zip(early, [LATE, LATE, LATE, OK], strict=True):
        breaker.end(end, trial=trial)
    assert breaker.state is OPEN


@pytest.mark.parametrize("stream", [False, True])
def test_an_open_circuit_is_passed_over_shown_and_tried_again(calm, small, large, stream):
    gateway = calm(upstream_entry(small, breaker={"failures": 2, "open_s": 1}), large)
    small.mode = "garbage"
    for _ in range(2):
        assert reason(gateway.chat()) == "bad_response"
    small.bodies.clear()
    small.mode = "ok"
    response = gateway.chat()
    assert (served_by(response), reason(response)) == ("large", "circuit_open")
    assert response.headers["x-tuneline-skipped"] == "small=circuit_open"
    assert response.headers["x-tuneline-attempts"] == "large"
    assert small.requests() == []
    metrics = gateway.metrics
    assert 'tuneline_gateway_circuit_open{upstream="small"} 1' in metrics
    assert 'tuneline_gateway_skipped_total{reason="circuit_open",upstream="small"} 1' in metrics
    wait_for(lambda: circuit(gateway) == "half_open")
    assert served_by(gateway.chat(stream=stream)) == "small"
    assert circuit(gateway) == "closed"


def test_with_every_circuit_open_the_client_hears_when_to_come_back(calm, small):
    gateway = calm(upstream_entry(small, breaker={"failures": 1, "open_s": 60}))
    small.mode = "garbage"
    assert gateway.chat().status_code == 502
    response = gateway.chat()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "circuit_open")
    assert 0 < int(response.headers["retry-after"]) <= 60
    assert response.headers["x-tuneline-skipped"] == "small=circuit_open"
