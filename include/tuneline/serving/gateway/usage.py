"""Sums of the ledger: usage and cost per key, totals per upstream to reconcile."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    and_,
    case,
    cast,
    distinct,
    func,
    select,
)

from tuneline.errors import UserError
from tuneline.serving.gateway.ledger_database import COLUMNS, Place, UsageRow, reading
from tuneline.serving.gateway.ledger_schema import USAGE


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


def usage_by_key(
    place: Place, since: datetime | None = None, until: datetime | None = None
) -> list[KeyUsage]:
    """Read usage and cost per API key, without the gateway's own pings and imported rows.

    Args:
        place: the ledger's file or URL; a running gateway may be writing to it.
        since: first moment that is counted, with a time zone; None counts from the start.
        until: first moment that is no longer counted; None counts to the end.

    Returns:
        One row per key and currency, by name.

    Raises:
        UserError: if the ledger is missing or none, or a time has no zone.
        RetryableError: if a database server cannot be reached.
    """
    u = USAGE.c
    query = (
        select(
            u.key,
            func.count(distinct(u.request_id)),
            func.count(),
            total(u.prompt_tokens),
            total(u.completion_tokens),
            total(u.estimated),
            func.sum(u.cost),
            u.currency,
        )
        .where(u.kind == "request", within(since, until))
        .group_by(u.key, u.currency)
        .order_by(u.key, u.currency)
    )
    return [KeyUsage(*row) for row in rows_of(place, query)]


def totals_by_upstream(
    place: Place, since: datetime | None = None, until: datetime | None = None
) -> list[UpstreamTotals]:
    """Read totals per upstream and model, pings and warm-up included, imported rows left out.

    Args and Raises are those of `usage_by_key`.

    Returns:
        One row per upstream, model and currency, by name.
    """
    u = USAGE.c
    reported = 1 - u.estimated
    query = (
        select(
            u.upstream,
            u.model_served,
            func.count(),
            total(u.prompt_tokens * reported),
            total(u.cached_tokens),
            total(u.completion_tokens * reported),
            total(u.estimated),
            total(u.prompt_tokens * u.estimated),
            total(u.completion_tokens * u.estimated),
            total(case((u.kind != "request", 1), else_=0)),
            func.sum(u.cost),
            u.currency,
        )
        .where(u.kind != "imported", within(since, until))
        .group_by(u.upstream, u.model_served, u.currency)
        .order_by(u.upstream, u.model_served, u.currency)
    )
    return [UpstreamTotals(*row) for row in rows_of(place, query)]


def rows_between(
    place: Place, since: datetime | None = None, until: datetime | None = None
) -> list[UsageRow]:
    """Read the attempts themselves, pings and warm-up left out, in the order in which they began.

    Args and Raises are those of `usage_by_key`.
    """
    u = USAGE.c
    query = (
        select(*(u[name] for name in COLUMNS))
        .where(u.kind == "request", within(since, until))
        .order_by(u.time, u.attempt)
    )
    return [UsageRow(*row) for row in rows_of(place, query)]


def rows_of(place: Place, query: Executable) -> list[tuple[Any, ...]]:
    """Run a query over a ledger.

    Raises:
        UserError, RetryableError: see `reading`.
    """
    with reading(place) as connection:
        return [tuple(row) for row in connection.execute(query)]


def within(since: datetime | None, until: datetime | None) -> ColumnElement[bool]:
    """Return the condition that an attempt began in a window of time.

    Raises:
        UserError: if a time has no zone.
    """
    conditions = [USAGE.c.time >= _epoch(since)] if since else []
    if until:
        conditions.append(USAGE.c.time < _epoch(until))
    return and_(True, *conditions)


def total(column: ColumnElement[int]) -> ColumnElement[int]:
    """Return a sum of whole numbers; PostgreSQL's would be a decimal number."""
    return cast(func.sum(column), BigInteger)


def _epoch(moment: datetime) -> float:
    if moment.tzinfo is None:
        raise UserError(f"{moment.isoformat()} has no time zone; add one, such as +00:00")
    return moment.timestamp()
