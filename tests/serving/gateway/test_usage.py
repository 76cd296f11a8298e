import sqlite3
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from tuneline.errors import UserError
from tuneline.serving.gateway.ledger.database import UsageRow, open_writer
from tuneline.serving.gateway.ledger.reports import totals_by_upstream, usage_by_key
from tuneline.serving.gateway.ledger.writer import Ledger

ROW = UsageRow(
    request_id="r1",
    attempt=1,
    time=1000.0,
    kind="request",
    key="alice",
    model="support",
    upstream="small",
    model_served="m",
    prompt_tokens=10,
    cached_tokens=4,
    completion_tokens=20,
    estimated=False,
    cost=0.5,
    currency="USD",
    latency_ms=12.5,
    ttft_ms=None,
    mean_logprob=None,
    status="ok",
    served=True,
    fallback_reason=None,
)


@dataclass
class Ended:
    row: UsageRow


def written(path, *rows):
    seen = []
    ledger = Ledger(path, queue_limit=10, flush_interval_s=0.01, on_written=seen.extend)
    ledger.start()
    for row in rows:
        ledger.put(Ended(row))
    ledger.close()
    assert seen == list(rows)


def test_usage_counts_requests_once_and_tokens_of_every_attempt(tmp_path):
    db = tmp_path / "new" / "usage.db"
    written(
        db,
        replace(ROW, status="low_confidence", served=False),
        replace(ROW, attempt=2, upstream="large", cost=2.0, fallback_reason="low_confidence"),
        replace(ROW, request_id="r2", key="bob", estimated=True, cost=0.25),
        replace(ROW, request_id="p1", key="_gateway", kind="ping", completion_tokens=1),
    )
    alice, bob = usage_by_key(db)
    assert (alice.key, alice.requests, alice.attempts) == ("alice", 1, 2)
    assert (alice.prompt_tokens, alice.completion_tokens) == (20, 40)
    assert (alice.cost, alice.currency) == (2.5, "USD")
    assert (bob.key, bob.requests, bob.estimated_attempts, bob.cost) == ("bob", 1, 1, 0.25)


def test_totals_tell_reported_from_estimated_and_hold_the_pings(tmp_path):
    db = tmp_path / "usage.db"
    written(
        db,
        ROW,
        replace(ROW, request_id="r2", estimated=True, cached_tokens=0, completion_tokens=7),
        replace(ROW, request_id="p1", kind="ping", completion_tokens=1),
    )
    (totals,) = totals_by_upstream(db)
    assert (totals.upstream, totals.model_served, totals.attempts) == ("small", "m", 3)
    assert (totals.prompt_tokens, totals.cached_tokens, totals.completion_tokens) == (20, 8, 21)
    assert (totals.estimated_attempts, totals.estimated_prompt_tokens) == (1, 10)
    assert (totals.estimated_completion_tokens, totals.own_attempts) == (7, 1)


def test_a_window_of_time(tmp_path):
    db = tmp_path / "usage.db"
    written(db, ROW, replace(ROW, request_id="r2", time=2000.0))
    at_2000 = datetime.fromtimestamp(2000, UTC)
    assert [used.requests for used in usage_by_key(db, since=at_2000)] == [1]
    assert [used.requests for used in usage_by_key(db, until=at_2000)] == [1]
    assert usage_by_key(db, since=datetime.fromtimestamp(2001, UTC)) == []
    with pytest.raises(UserError, match="time zone"):
        usage_by_key(db, since=datetime(2026, 1, 1))


def test_a_batch_written_twice_is_billed_once(tmp_path):
    db = tmp_path / "usage.db"
    written(db, ROW)
    written(db, ROW)
    assert [used.attempts for used in usage_by_key(db)] == [1]


def test_what_is_no_ledger(tmp_path):
    with pytest.raises(UserError, match="no such usage ledger"):
        usage_by_key(tmp_path / "missing.db")
    (tmp_path / "text.db").write_text("hello " * 200)
    for use in (usage_by_key, open_writer):
        with pytest.raises(UserError, match=r"text\.db"):
            use(tmp_path / "text.db")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE usage (x)")
    other.close()
    for use in (usage_by_key, open_writer):
        with pytest.raises(UserError, match="not a usage ledger"):
            use(tmp_path / "other.db")
    with pytest.raises(UserError, match="cannot be opened"):
        open_writer(tmp_path)
