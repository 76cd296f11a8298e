import sqlite3

import httpx
import pytest
from tests.lab.waiting import wait_for

from tuneline.serving.gateway.ledger.reports import totals_by_upstream, usage_by_key

from .conftest import EAGER, upstream_entry


@pytest.fixture
def start(start):
    """Starts a gateway that pings often."""
    return lambda *servers, **fields: start(*servers, **{"readiness": EAGER, **fields})


def ready(gateway) -> httpx.Response:
    return httpx.get(gateway.url + "/v1/health/ready")


def wait_not_ready(gateway, word: str) -> dict:
    wait_for(
        lambda: gateway.probe()["status"] == "not_ready" and word in gateway.probe()["message"]
    )
    return gateway.probe()


def lengths(pings: list[dict]) -> list[int]:
    return [len(body["messages"][0]["content"].split()) for body in pings]


def roles(pings: list[dict]) -> list[list[str]]:
    return [[turn["role"] for turn in body["messages"]] for body in pings]


def test_ready_only_after_listing_warm_up_and_a_ping(start, small):
    small.answer_delay_s = 0.2
    gateway = start(small)
    first = ready(gateway)
    assert first.status_code == 503
    live = gateway.client.get("/v1/health/live")
    assert (live.status_code, live.json()["status"]) == (200, "live")
    assert first.headers["x-tuneline-server-state"] == "not_ready"
    assert first.json()["status"] == "not_ready"
    gateway.wait_ready()
    # Two warm-up prompts of the default lengths, then a one-token ping, which may be under way.
    wait_for(lambda: len(small.pings()) >= 3)
    assert lengths(small.pings()[:3]) == [8, 128, 1]
    assert small.pings()[2]["max_tokens"] == 1
    assert ready(gateway).json() == {
        "object": "health.response",
        "message": "Service is ready",
        "status": "ready",
        "upstreams": {"small": "ready"},
        "circuits": {"small": "closed"},
        "behind": {},
        "canary": {},
        "reload": {"refused": None, "retiring": 0, "taken": ""},
    }


@pytest.mark.parametrize(("mode", "word"), [("hang", "no token for"), ("error", "HTTP 500")])
def test_a_broken_engine_is_not_ready_and_comes_back(start, small, mode, word):
    # Short enough to be waited for, long enough for a machine that others use.
    gateway = start(small, readiness=EAGER | {"ping_timeout_s": 0.5, "stale_after_s": 1.5})
    gateway.wait_ready()
    small.mode = mode
    wait_not_ready(gateway, word)
    small.mode = "ok"
    gateway.wait_ready()


def test_a_killed_engine_is_not_ready_and_is_warmed_up_again(start, small):
    gateway = start(small)
    gateway.wait_ready()
    small.stop()
    body = wait_not_ready(gateway, "cannot connect")
    assert body["upstreams"] == {"small": "cannot connect"}
    small.bodies.clear()
    small.start()
    gateway.wait_ready()
    assert lengths(small.pings()[:2]) == [8, 128]


def test_a_request_that_meets_a_dead_engine_tells_the_probe_at_once(start, small):
    readiness = {"ping_interval_s": 30, "ping_timeout_s": 0.5, "stale_after_s": 60}
    gateway = start(small, readiness=readiness)
    gateway.wait_ready()
    small.stop()
    assert ready(gateway).status_code == 200
    assert gateway.chat().status_code == 502
    assert ready(gateway).status_code == 503


def test_another_model_on_the_same_port_is_not_ready(start, small):
    small.models = ["somebody-elses"]
    gateway = start(small)
    body = wait_not_ready(gateway, "small-model is not listed")
    # Whoever may read the probe does not learn what else runs there.
    assert "somebody" not in str(body)
    small.models = ["small-model"]
    gateway.wait_ready()


def test_pings_rest_while_tokens_flow(start, small):
    gateway = start(small, readiness=EAGER | {"ping_interval_s": 0.7})
    gateway.wait_ready()
    before = len(small.pings())
    small.words, small.token_delay_s = 50, 0.04
    gateway.stream()
    assert len(small.pings()) - before <= 1
    wait_for(lambda: len(small.pings()) > before + 1)


def test_pings_and_warm_up_are_in_the_ledger_and_not_on_any_key(start, small):
    # No ping that the end cuts off, whose tokens would be an estimate.
    gateway = start(small, readiness=EAGER | {"ping_interval_s": 30, "stale_after_s": 60})
    gateway.wait_ready()
    gateway.chat()
    gateway.stop()
    (used,) = usage_by_key(gateway.ledger)
    assert (used.key, used.requests, used.completion_tokens) == ("tester-0", 1, 5)
    (totals,) = totals_by_upstream(gateway.ledger)
    assert totals.own_attempts >= 3
    assert (totals.prompt_tokens, totals.completion_tokens, totals.estimated_attempts) == (
        small.prompt_tokens,
        small.completion_tokens,
        0,
    )


@pytest.mark.parametrize(("require", "status"), [("any", 200), ("primary", 503)])
def test_a_dead_primary_with_a_living_fallback(start, small, large, require, status):
    readiness = {"ping_interval_s": 0.1, "require": require}
    gateway = start(small, large, readiness=readiness)
    gateway.wait_ready()
    small.stop()
    wait_for(lambda: ready(gateway).json()["upstreams"]["small"] == "cannot connect")
    assert ready(gateway).status_code == status


def test_without_pings_the_list_of_models_is_the_proof(start, small):
    gateway = start(upstream_entry(small, ping=False))
    gateway.wait_ready()
    assert small.pings() == []
    small.stop()
    wait_not_ready(gateway, "cannot connect")


def test_a_ledger_that_cannot_be_written_is_not_ready(start, small, tmp_path):
    gateway = start(small)
    gateway.wait_ready()
    blocker = sqlite3.connect(tmp_path / "usage.db", isolation_level=None)
    # What a full disk does too: the write fails, the rows stay.
    blocker.execute("ALTER TABLE usage RENAME TO away")
    gateway.chat()
    wait_not_ready(gateway, "ledger")
    blocker.execute("ALTER TABLE away RENAME TO usage")
    blocker.close()
    gateway.wait_ready()
    gateway.rows(1)


SYSTEM = "Answer with one word."


@pytest.mark.parametrize(
    ("delay_s", "ping"), [(0.0, ["system", "user"]), (0.3, ["user"])], ids=["quick", "slow"]
)
def test_warm_up_and_pings_carry_the_system_turn_unless_it_takes_long(start, small, delay_s, ping):
    small.answer_delay_s = delay_s
    readiness = {"ping_timeout_s": 0.5, "ping_interval_s": 0.2, "stale_after_s": 5.0}
    gateway = start(upstream_entry(small, warmup_system=SYSTEM), readiness=readiness)
    gateway.wait_ready()
    wait_for(lambda: len(small.pings()) >= 5)
    assert roles(small.pings()[:5]) == [["user"], ["user"], ["system", "user"], ping, ping]
    assert small.pings()[2]["messages"][0]["content"] == SYSTEM
