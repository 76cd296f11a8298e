"""Sums of the ledger: usage and cost per key, totals per upstream to reconcile."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tuneline.errors import UserError
from tuneline.serving.gateway.ledger import SCHEMA_VERSION, UsageRow


@dataclass(frozen=True)
class KeyUsage:
    """Usage of one API key: its requests, and the tokens and cost of all their attempts."""

    key: str
    requests: int
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    estimated_attempts: int
    cost: float
    currency: str


@dataclass(frozen=True)
class UpstreamTotals:
    """Totals of one upstream, to compare with its counters.

    Reported tokens come from the upstream's usage fields and must agree with its counters. The
    gateway counted the estimated ones, of attempts that ended before usage came; they bound the
    difference. Pings and warm-up are included, since the upstream counts them too.
    `cached_tokens` of the reported prompt tokens were not computed again; some engines count
    only the computed ones.
    """

    upstream: str
    model_served: str
    attempts: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    estimated_attempts: int
    estimated_prompt_tokens: int
    estimated_completion_tokens: int
    own_attempts: int
    cost: float
    currency: str


_BY_KEY = """
SELECT key, count(DISTINCT request_id), count(*), sum(prompt_tokens), sum(completion_tokens),
       sum(estimated), sum(cost), currency
FROM usage WHERE kind = 'request' AND time >= ? AND time < ?
GROUP BY key, currency ORDER BY key, currency
"""

_BY_UPSTREAM = """
SELECT upstream, model_served, count(*),
       sum(prompt_tokens * (1 - estimated)), sum(cached_tokens),
       sum(completion_tokens * (1 - estimated)), sum(estimated),
       sum(prompt_tokens * estimated), sum(completion_tokens * estimated),
       sum(kind <> 'request'), sum(cost), currency
FROM usage WHERE time >= ? AND time < ?
GROUP BY upstream, model_served, currency ORDER BY upstream, model_served, currency
"""

_ROWS = f"""
SELECT {", ".join(field.name for field in fields(UsageRow))}
FROM usage WHERE kind = 'request' AND time >= ? AND time < ? ORDER BY time, attempt
"""  # noqa: S608 (our own column names)


def usage_by_key(
    db: Path, since: datetime | None = None, until: datetime | None = None
) -> list[KeyUsage]:
    """Read usage and cost per API key, without the gateway's own pings.

    Args:
        db: the ledger file; a running gateway may be writing to it.
        since: first moment that is counted, with a time zone; None counts from the start.
        until: first moment that is no longer counted; None counts to the end.

    Returns:
        One row per key and currency, by name.

    Raises:
        UserError: if the file is missing or not a ledger, or a time has no zone.
    """
    return [KeyUsage(*row) for row in _query(db, _BY_KEY, since, until)]


def totals_by_upstream(
    db: Path, since: datetime | None = None, until: datetime | None = None
) -> list[UpstreamTotals]:
    """Read totals per upstream and model, pings and warm-up included.

    Args and Raises are those of `usage_by_key`.

    Returns:
        One row per upstream, model and currency, by name.
    """
    return [UpstreamTotals(*row) for row in _query(db, _BY_UPSTREAM, since, until)]


def rows_between(
    db: Path, since: datetime | None = None, until: datetime | None = None
) -> list[UsageRow]:
    """Read the attempts themselves, pings and warm-up left out, in the order in which they began.

    Args and Raises are those of `usage_by_key`.
    """
    return [UsageRow(*row) for row in _query(db, _ROWS, since, until)]


def _query(
    db: Path, statement: str, since: datetime | None, until: datetime | None
) -> list[tuple[Any, ...]]:
    if not db.is_file():
        raise UserError(f"{db}: no such usage ledger")
    window = (_epoch(since, 0.0), _epoch(until, datetime.max.replace(tzinfo=UTC).timestamp()))
    try:
        uri = f"file:{quote(str(db.resolve()))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=10.0)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version != SCHEMA_VERSION:
                raise UserError(f"{db}: not a usage ledger of version {SCHEMA_VERSION}")
            return list(connection.execute(statement, window))
    except sqlite3.Error as error:
        raise UserError(f"{db}: the usage ledger cannot be read: {error}") from None


def _epoch(moment: datetime | None, otherwise: float) -> float:
    if moment is None:
        return otherwise
    if moment.tzinfo is None:
        raise UserError(f"{moment.isoformat()} has no time zone; add one, such as +00:00")
    return moment.timestamp()
