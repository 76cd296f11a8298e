"""Upstreams that send what no engine sends: each is left, or ended, and counts as a failure."""

import asyncio
import itertools
import json

import pytest

from tuneline.serving.gateway.protocol import LONGEST_EVENT, SseParser

from .conftest import text_of, upstream_entry

IMPATIENT = {
    "first_token_timeout_s": 0.5,
    "idle_timeout_s": 0.5,
    "max_answer_bytes": 3_000_000,
    "breaker": {"failures": 1, "open_s": 60},
}
JSON = {"response_format": {"type": "json_object"}}
JUDGED = {"low_confidence": {"min_mean_logprob": -1.0, "stream_window_tokens": 8}}


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


def circuit(gateway) -> str:
    return gateway.client.get("/v1/health/ready").json()["circuits"]["small"]


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
    response = gateway.chat(**JSON)
    assert response.status_code == 200
    assert response.headers["x-tuneline-fallback-reason"] == "bad_response"
    assert [row["status"] for row in gateway.rows(2)] == ["bad_response", "ok"]
    assert circuit(gateway) == "open"


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (sent(b'data: {"choices": 5}\n\n'), "bad_response"),
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
def test_a_stream_that_makes_no_sense_falls_back(calm, small, large, stream, reason):
    gateway = calm(upstream_entry(small, **IMPATIENT), large, model=JUDGED)
    small.pieces, large.reply = stream, "{}"
    response, events, done = gateway.stream(**JSON)
    assert response.headers["x-tuneline-fallback-reason"] == reason
    assert (text_of(events), done) == ("{}", True)
    assert circuit(gateway) == "open"


@pytest.mark.parametrize(
    ("stream", "limits", "code"),
    [
        (sent(TOKEN, last=EMPTY, pause_s=0.05), {}, "timeout"),
        (sent(last=TOKEN, pause_s=0.05), {"stream_timeout_s": 1.0}, "timeout"),
        (sent(last=TOKEN, pause_s=0.02), {"max_answer_bytes": 20_000}, "bad_response"),
        (sent(TOKEN, b'data: {"choices": 5}\n\n', pause_s=0.4), {}, "bad_response"),
    ],
)
def test_a_stream_without_an_end_is_ended(calm, small, large, stream, limits, code):
    gateway = calm(upstream_entry(small, **{**IMPATIENT, **limits}), large)
    small.pieces = stream
    _, events, done = gateway.stream()
    assert text_of(events).startswith("a")
    assert events[-1]["error"]["code"] == code
    assert not done
    (row,) = gateway.rows(1)
    assert row["status"] == "died_midstream"
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
