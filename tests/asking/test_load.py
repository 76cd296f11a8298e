"""The load client on a server whose every token has a known time, and its own record."""

import gc

import pytest
from tests.lab.token_server import TokenServer
from tests.lab.token_stream import Behaviour

from tuneline.asking.load import drive, drive_open

PROMPTS = [[{"role": "user", "content": f"question {number}"}] for number in range(12)]


def test_a_closed_loop_keeps_its_connections_and_counts_every_token():
    with TokenServer(Behaviour(first=0.03, token=0.005)) as server, server.client() as client:
        timings, seconds = drive(client, PROMPTS, 4, [4, 5, 6] * 4)
        of_server = sorted(first for first, _, _ in server.stream.timings)
    assert server.stream.connections == 4
    assert [timing.output_tokens for timing in timings] == [4, 5, 6] * 4
    assert all(timing.ok and len(timing.gaps) == timing.output_tokens - 1 for timing in timings)
    # Both read one clock: nothing comes before the server sent it, and 12 requests on 4
    # connections take three rounds.
    seen = sorted(timing.ttft for timing in timings)
    assert all(ours >= theirs for ours, theirs in zip(seen, of_server, strict=True))
    # Counted from the request, since a busy machine may see the first token late.
    assert all(timing.total >= 0.03 + 0.005 * (timing.output_tokens - 1) for timing in timings)
    assert seconds >= 3 * 0.03
    assert gc.isenabled()


def test_connections_are_opened_before_the_clock_starts():
    """A server that closes each connection after one answer costs no request."""
    with TokenServer(Behaviour(per_connection=1)) as server, server.client() as client:
        timings, _ = drive(client, PROMPTS, 3, 4)
    assert all(timing.ok for timing in timings), timings
    assert len(server.bodies) == 12
    assert 12 <= server.stream.connections <= 15


def test_an_open_loop_counts_from_the_planned_arrival():
    arrivals = [0.0, 0.0, 0.05, 0.1, 0.1, 0.15]
    one_slot = Behaviour(first=0.04, token=0.0, slots=1)
    with TokenServer(one_slot) as server, server.client() as client:
        timings, seconds = drive_open(client, PROMPTS[:6], arrivals, 2)
    assert [timing.arrived for timing in timings] == arrivals
    assert all(timing.ok and 0 <= timing.late < 1 for timing in timings)
    # Two come at once to one slot: one of them waits for the other.
    assert max(timings[0].ttft, timings[1].ttft) >= 0.08
    assert seconds >= 6 * 0.04


def test_a_server_that_is_not_there_is_given_up():
    with TokenServer() as server:
        client = server.client()
    server.stream._server.close()
    with client:
        client.base_url = "http://127.0.0.1:9"
        timings, _ = drive(client, PROMPTS, 1, 4, give_up=3)
    assert len(timings) == 3
    assert "can't be reached" in timings[0].error


@pytest.mark.parametrize("wanted", [4, 40])
def test_an_answer_of_fewer_tokens_than_asked_for_has_failed(wanted, monkeypatch):
    monkeypatch.setattr("tests.lab.token_stream._usage", lambda _, tokens, __: {
        "prompt_tokens": 1, "completion_tokens": min(tokens, 8)
    })  # fmt: skip
    with TokenServer() as server, server.client() as client:
        (timing,), _ = drive(client, PROMPTS[:1], 1, wanted)
    assert timing.ok == (wanted == 4)
    assert timing.ok or "8 of 40 tokens" in timing.error
