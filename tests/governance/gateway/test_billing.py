"""The rules of traffic that goes wrong: each way to bill it falsely breaks the rule for it."""

from dataclasses import replace
from itertools import cycle
from types import SimpleNamespace

import pytest
from tests.lab.engines import llama_server
from tests.lab.families import make_family
from tests.lab.logged import ROW
from tests.lab.runs import broken

from tuneline.gguf.export import export_gguf
from tuneline.governance.gateway import billing
from tuneline.governance.gateway.billing import (
    KEY,
    Phase,
    Received,
    Tokens,
    Traffic,
    bounded,
    exact,
    killed,
)
from tuneline.serving.engines.server import Counters
from tuneline.serving.gateway.process import GatewayProcess


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


def test_an_answer_that_was_given_up_counts_in_its_own_phase():
    """An engine that counts an answer at its end: its counters stand still until then."""
    read = iter([Counters(7, 1, open_requests=1)] * 3 + [Counters(7, 49)] * 2)
    traffic = Traffic(None, SimpleNamespace(counters=lambda: next(read)), iter(()), 8, 1024)
    assert traffic._counters() == Tokens(7, 49)


@pytest.mark.long
@pytest.mark.parametrize("family", ["gemma 3", "qwen2"])
def test_a_real_engine_writes_no_more_for_a_killed_stream_than_it_was_asked(family, tmp_path):
    """Ten kills on each, each after two answers that were given up."""
    make_family(tmp_path / "base", family)
    gguf = export_gguf(tmp_path / "base", tmp_path / "model.gguf").path
    prompts = cycle([[{"role": "user", "content": f"{number} words"}] for number in range(20)])
    with llama_server(gguf, alias=billing.CALM, parallel=4, threads=1) as server:
        gateway = GatewayProcess(
            tmp_path / "gateway",
            upstreams=billing.upstreams(server, {"per_1k_prompt": 1.0, "per_1k_completion": 1.0}),
            models=billing.models(),
            keys=(KEY,),
        )
        with gateway:
            traffic = Traffic(gateway, server, prompts, billing.unseen_tokens(100), 1024)
            for _ in range(10):
                for _ in range(2):
                    # Given up: the engine writes it to its end, and counts it only then.
                    gateway.ask(
                        billing.CALM, next(prompts), max_tokens=160, key=KEY, timeout=0.02,
                        extra=billing.ENDLESS,
                    )  # fmt: skip
                assert broken(traffic._kill()) == set()
