"""The rules of traffic that goes wrong: each way to bill it falsely breaks the rule for it."""

from dataclasses import replace

import pytest
from tests.lab.logged import ROW
from tests.lab.runs import broken

from tuneline.governance.gateway.billing import Phase, Received, Tokens, bounded, exact, killed


def row(request_id, completion=10, attempt=1, **fields):
    tokens = {"prompt_tokens": 7, "cached_tokens": 2, "completion_tokens": completion}
    return replace(ROW, request_id=request_id, attempt=attempt, **tokens, **fields)


def told(request_id, completion=10, attempts=1):
    return Received(Tokens(7, completion), 0, request_id, attempts)


CALM = Phase("p", [told("a"), told("b")], [row("a"), row("b")], Tokens(10, 20))
# One stream was left after three pieces; the engine generated nine tokens until it noticed.
LEFT = row("c", 4, estimated=True, status="client_aborted", served=True)
CUT = Phase(
    "p", [told("a"), Received(None, 3, "c")], [row("a"), LEFT], Tokens(5, 19), cut=1, unseen=8
)


def test_what_adds_up_passes():
    assert broken(exact(CALM)) == set()
    assert broken(bounded(CUT)) == set()


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        ({"rows": [row("a")]}, {"attempts", "tokens_off_clients", "tokens_off_engine"}),
        ({"rows": [row("a"), row("b", 11)]}, {"tokens_off_clients", "tokens_off_engine"}),
        # Sums agree, requests do not.
        ({"rows": [row("a", 9), row("b", 11)]}, {"tokens_off_clients"}),
        ({"engine": Tokens(10, 21)}, {"tokens_off_engine"}),
        ({"engine": Tokens(9, 20)}, {"tokens_off_engine"}),
        # An attempt that was left is not billed, though the engine worked for it.
        (
            {"received": [told("a", attempts=2), told("b")], "engine": Tokens(15, 30)},
            {"attempts", "tokens_off_engine"},
        ),
    ],
)
def test_a_phase_that_must_agree(fault, names):
    assert broken(exact(replace(CALM, **fault))) == {f"p_{name}" for name in names}


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        pytest.param(
            {"rows": [row("a")]},
            {"cut_off", "attempts", "tokens_below_received", "tokens_not_booked"},
            id="the aborted stream has no row",
        ),
        pytest.param(
            {"rows": [row("a"), replace(LEFT, completion_tokens=1)]},
            {"tokens_below_received"},
            id="it is billed below what its client got",
        ),
        pytest.param(
            {"rows": [row("a"), replace(LEFT, completion_tokens=10)]},
            {"tokens_over_engine"},
            id="it is billed more than the engine generated",
        ),
        pytest.param(
            {"engine": Tokens(5, 10 + 96)}, {"tokens_not_booked"}, id="the engine generated on"
        ),
    ],
)
def test_a_phase_with_attempts_that_were_cut_off(fault, names):
    assert broken(bounded(replace(CUT, **fault))) == {f"p_{name}" for name in names}


SETTLED = [row("x"), row("y")]
KILLED = Phase(
    "killed", [Received(None, 3), told("a")], [row("a")], Tokens(5, 40), cut=1, unseen=96
)


def test_a_killed_gateway_may_lose_the_request_under_way():
    assert broken(killed(KILLED, SETTLED, [*SETTLED, row("a")])) == set()
    # The stream ended just then, before its row was written; two pings were answered too late.
    ended, late = [told("k", 96), told("a")], row("ping-1", 0, kind="ping", status="timeout")
    phase = replace(KILLED, received=ended, engine=Tokens(5, 10 + 98), own=[late, late])
    assert broken(killed(phase, SETTLED, [*SETTLED, row("a")])) == set()


@pytest.mark.parametrize(
    ("phase", "now", "names"),
    [
        ({}, [row("x"), row("a")], {"settled_rows_changed"}),
        ({}, [row("x"), row("y", 11), row("a")], {"settled_rows_changed"}),
        ({"rows": []}, SETTLED, {"requests_lost"}),
        (
            {"rows": [row("a"), row("b"), row("c")], "engine": Tokens(15, 40)},
            [*SETTLED, row("a")],
            {"requests_too_many"},
        ),
        ({"engine": Tokens(5, 200)}, [*SETTLED, row("a")], {"tokens_not_booked"}),
    ],
)
def test_a_killed_gateway_that_loses_more_is_caught(phase, now, names):
    found = broken(killed(replace(KILLED, **phase), SETTLED, now))
    assert found == {f"killed_{name}" for name in names}
