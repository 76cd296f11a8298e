"""Many requests at once while upstreams die, hang, talk garbage or refuse; and a full disk.

Every request ends in an answer, a fallback or a clean error, and the ledger has what clients saw.
"""

import asyncio
import json
import resource
import sqlite3
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import aiohttp
import pytest
from tests.lab.upstream_server import UpstreamServer
from tests.lab.waiting import wait_for

from tuneline.serving.gateway.ledger.database import LedgerWriter

from .conftest import ask, upstream_entry

AT_ONCE = 256
# 256 connections at once take their time on a machine that is busy; only who hangs is left soon.
PATIENT = {"connect_timeout_s": 60, "ping": False}
SOON = {"answer_timeout_s": 0.5, "first_token_timeout_s": 0.5}
WITHIN_S = 120


@dataclass
class Seen:
    """What a client saw."""

    request_id: str
    status: int
    served_by: str | None
    tokens: int | None
    whole: bool


async def seen_by_client(session: aiohttp.ClientSession, url: str, *, stream: bool) -> Seen:
    body = ask(stream=stream, stream_options={"include_usage": True} if stream else None)
    async with asyncio.timeout(WITHIN_S):
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            text = (await response.read()).decode()
            headers = response.headers
    usage, whole = None, False
    if response.status == 200 and stream:
        events = [line[6:] for line in text.split("\n\n") if line.startswith("data: ")]
        whole = events[-1] == "[DONE]"
        if not whole:
            assert "error" in json.loads(events[-1]), "a stream ends by [DONE] or by an error"
        for event in events[: -1 if whole else None]:
            usage = json.loads(event).get("usage") or usage
    elif response.status == 200:
        usage, whole = json.loads(text)["usage"], True
    else:
        assert json.loads(text)["error"]["message"].endswith(".")
    tokens = usage["completion_tokens"] if usage else None
    served_by = headers.get("x-tuneline-served-by")
    return Seen(headers["x-request-id"], response.status, served_by, tokens, whole)


def all_at_once(url: str, key: str, meanwhile=None) -> list[Seen]:
    """What 256 clients saw, half of them of streams; `meanwhile` runs once they are under way."""

    async def run() -> list[Seen]:
        headers = {"authorization": f"Bearer {key}"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
            tasks = [
                asyncio.create_task(seen_by_client(session, url, stream=bool(i % 2)))
                for i in range(AT_ONCE)
            ]
            if meanwhile is not None:
                await asyncio.to_thread(meanwhile)
            return await asyncio.gather(*tasks)

    return asyncio.run(run())


def served_rows(ledger) -> dict[str, dict]:
    with closing(sqlite3.connect(ledger)) as db:
        db.row_factory = sqlite3.Row
        found = db.execute("SELECT * FROM usage WHERE kind = 'request' AND served = 1")
        return {row["request_id"]: dict(row) for row in found}


def check_ledger(gateway, seen: list[Seen]) -> None:
    """Every answer has one row that was served, by whom and with as many tokens as was told."""
    assert len({one.request_id for one in seen}) == len(seen)
    answered = [one for one in seen if one.status == 200]
    wait_for(lambda: gateway.runtime.ledger.pending == 0)
    rows = served_rows(gateway.ledger)
    assert set(rows) == {one.request_id for one in answered}
    for one in answered:
        row = rows[one.request_id]
        assert row["upstream"] == one.served_by
        if one.tokens is not None:
            assert (row["completion_tokens"], row["estimated"]) == (one.tokens, 0)
        assert (row["status"] == "ok") == one.whole


def test_256_streams_at_once_are_whole_and_billed(start, small):
    gateway = start(upstream_entry(small, **PATIENT))
    small.words, small.token_delay_s = 20, 0.02
    seen = all_at_once(gateway.url, gateway.key)
    assert {(one.status, one.tokens, one.whole) for one in seen} == {(200, 20, True)}
    check_ledger(gateway, seen)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("hang", "timeout"),
        ("error", "upstream_5xx"),
        ("busy", "upstream_busy"),
        ("refuse", "upstream_refused"),
        ("die_before", "connection_lost"),
        ("garbage", None),
    ],
)
def test_with_a_second_upstream_nobody_notices(start, small, large, mode, reason):
    small.mode = mode
    limits = {**PATIENT, **(SOON if mode == "hang" else {})}
    gateway = start(upstream_entry(small, **limits), upstream_entry(large, **PATIENT))
    seen = all_at_once(gateway.url, gateway.key)
    assert {(one.status, one.served_by, one.tokens, one.whole) for one in seen} == {
        (200, "large", 5, True)
    }
    check_ledger(gateway, seen)
    with closing(sqlite3.connect(gateway.ledger)) as db:
        left = Counter(db.execute("SELECT status FROM usage WHERE kind = 'request' AND served = 0"))
    assert reason is None or (reason,) in left


# All but the first are slow and end on the same way.
FAULTS = [
    "hang",
    *(
        pytest.param(mode, marks=pytest.mark.long)
        for mode in ("error", "busy", "refuse", "die_before", "garbage")
    ),
]


@pytest.mark.parametrize("mode", FAULTS)
def test_without_one_everybody_gets_a_clean_error_in_time(start, small, mode):
    small.mode = mode
    limits = {**PATIENT, **(SOON if mode == "hang" else {})}
    gateway = start(upstream_entry(small, **limits))
    seen = all_at_once(gateway.url, gateway.key)
    assert {one.status for one in seen} <= {502, 503, 504}
    check_ledger(gateway, seen)
    assert gateway.runtime.in_flight == 0
    small.reset()
    wait_for(lambda: gateway.chat().status_code == 200)


def test_an_upstream_that_is_killed_in_the_middle(start, small, large):
    victim = UpstreamServer("victim")
    victim.words, victim.token_delay_s, victim.answer_delay_s = 1000, 0.1, 100.0
    gateway = start(upstream_entry(victim, **PATIENT), upstream_entry(large, **PATIENT))

    def kill() -> None:
        wait_for(lambda: len(victim.requests()) == AT_ONCE)
        victim.stop()

    try:
        seen = all_at_once(gateway.url, gateway.key, kill)
    finally:
        victim.stop()
    # Whole answers fell back; streams that had begun say that they broke off.
    assert {one.status for one in seen} == {200}
    assert Counter((one.served_by, one.whole) for one in seen) == {
        ("large", True): AT_ONCE // 2,
        ("victim", False): AT_ONCE // 2,
    }
    check_ledger(gateway, seen)


def test_a_ledger_that_falls_behind_slows_requests_down(start, small, monkeypatch):
    insert = LedgerWriter.insert

    def slow(self, rows):
        time.sleep(0.05 * len(rows))
        return insert(self, rows)

    monkeypatch.setattr(LedgerWriter, "insert", slow)
    gateway = start(
        upstream_entry(small, **PATIENT), ledger={"path": "usage.db", "queue_limit": 16}
    )
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: gateway.chat().status_code, range(64)))
    assert set(statuses) == {200}
    gateway.rows(64)


def test_a_full_disk_costs_logs_first_and_no_usage(launch, small, tmp_path):
    log = {"store": f"file://{tmp_path}/store", "spool": "spool"}
    process = launch(
        upstream_entry(small, ping=False),
        ledger={"path": "usage.sqlite", "flush_interval_s": 0.02, "queue_limit": 40},
        production_log={**log, "queue_limit": 5, "flush_interval_s": 0.05},
    )
    unlimited = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    assert process.ask().status_code == 200
    wait_for(lambda: len(served_rows(process.ledger)) == 1)
    # No file takes another byte.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, unlimited[1]))
    assert [process.ask().status_code for _ in range(20)] == [200] * 20
    lost = 'tuneline_gateway_production_log_dropped_total{reason="memory"} '
    assert float(process.get("/metrics").text.split(lost)[1].split()[0]) >= 10
    served = 21
    while (status := process.ask().status_code) == 200 and served < 60:
        served += 1
    assert (status, served) == (503, 41)
    assert (process.probe("ready"), process.probe("live")) == (503, 200)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
    wait_for(lambda: process.probe("ready") == 200)
    assert process.ask().status_code == 200
    process.end()
    # All that was answered was also written.
    assert len(served_rows(process.ledger)) == served + 1
