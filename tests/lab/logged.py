"""Logged requests of production, put into a store as the gateway does."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from tuneline.artifacts.request_log import (
    LoggedRequest,
    folder_name,
    part_key,
    table_of,
    write_part,
)
from tuneline.serving.gateway.ledger.database import UsageRow, open_writer
from tuneline.store import Store

MODEL = "support"
DAY = date(2026, 3, 4)


def logged(number: int, prompt: str, answer: str | None = "It is on its way.", **other: Any):
    """A request of the day, answered well unless `other` says otherwise."""
    day = other.pop("day", DAY)
    time = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(seconds=number)
    # Of 30 requests none has more than 5 of a key, so that no key reaches its limit.
    row = LoggedRequest(
        request_id=f"req-{day:%d}-{number:06d}", time=time, key=f"shop-{number % 7}", model=MODEL,
        model_version="v1", weights_sha256=None, messages=[{"role": "user", "content": prompt}],
        answer=answer, latency_ms=12.0, ttft_ms=None, confidence=-0.2, served_by="small",
        fallback_reason=None, prompt_tokens=9, completion_tokens=5, finish_reason="stop",
        status="ok", sample_rate=1.0, redactions=[],
    )  # fmt: skip
    return replace(row, **other)


ROW = UsageRow(
    request_id="r1", attempt=1, time=1000.0, kind="request", key="alice", model=MODEL,
    upstream="small", model_served="m", prompt_tokens=10, cached_tokens=4, completion_tokens=20,
    estimated=False, cost=0.5, currency="USD", latency_ms=12.5, ttft_ms=None, mean_logprob=None,
    status="ok", served=True, fallback_reason=None,
)  # fmt: skip


def ledger_of(folder: Path, requests: int, days: int = 1) -> Path:
    """Return a usage ledger with so many requests on each day, from `DAY` on."""
    path, begin = folder / "usage.sqlite", datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC)
    times = [begin + timedelta(days=d, seconds=n) for d in range(days) for n in range(requests)]
    rows = [replace(ROW, request_id=f"{time}", time=time.timestamp()) for time in times]
    writer = open_writer(path)
    if rows:
        writer.insert(rows)
    writer.close()
    return path


def put(
    store: Store, rows: list[LoggedRequest], tmp: Path, part: str = "part-1", model: str = MODEL
) -> None:
    """Write requests of one day and model as a part."""
    table, torn = table_of(b"".join(row.line() for row in rows))
    assert not torn
    key = part_key(folder_name(model), rows[0].day.isoformat(), part)
    write_part(store, key, table, tmp / "part.parquet")
