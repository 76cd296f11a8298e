"""Sums of the ledger: what keys, users, models and days cost, and totals per upstream."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any, Literal, TypeAlias, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Text,
    and_,
    case,
    cast,
    distinct,
    func,
    select,
)

from tuneline.errors import UserError
from tuneline.serving.gateway.ledger.database import (
    COLUMNS,
    USAGE,
    LedgerLocation,
    UsageRow,
    periods,
    reading,
)

By: TypeAlias = Literal["key", "user", "model", "day"]
_MILLION = 1e6
_DAY_S = 86_400
_SECONDS_PER_HOUR = 3600.0
# Paid for by clients, here or at another gateway; pings and warm-up are not.
_PAID = ("request", "imported")
# A spreadsheet would take text that begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_COLUMNS = ("requests", "attempts", "prompt_tokens", "completion_tokens", "cost", "currency")


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
    """Totals of one upstream, to compare with its counters; pings and warm-up are included.

    The gateway counted the estimated tokens, of attempts that ended before usage came; they bound
    the difference. Some engines count only the prompt tokens that were not cached.
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


_U = USAGE.c


def _total(column: ColumnElement[int]) -> ColumnElement[int]:
    """Return a sum of whole numbers; PostgreSQL's would be a decimal number."""
    return cast(func.sum(column), BigInteger)


# By the field that they fill, unless a report sums something else under that name.
_SUMS: dict[str, ColumnElement[Any]] = {
    "requests": func.count(distinct(_U.request_id)),
    "attempts": func.count(),
    "prompt_tokens": _total(_U.prompt_tokens),
    "completion_tokens": _total(_U.completion_tokens),
    "cost": func.sum(_U.cost),
    "currency": _U.currency,
    "estimated_attempts": _total(_U.estimated),
    "estimated_prompt_tokens": _total(_U.prompt_tokens * _U.estimated),
    "estimated_completion_tokens": _total(_U.completion_tokens * _U.estimated),
    "served_prompt_tokens": _total(_U.prompt_tokens * _U.served),
    "served_completion_tokens": _total(_U.completion_tokens * _U.served),
    "cached_tokens": _total(_U.cached_tokens),
    "own_attempts": _total(case((_U.kind != "request", 1), else_=0)),
}
# A report has a line for each group and currency.
Line = TypeVar("Line", "KeyUsage", "UpstreamTotals", "Group")


def _grouped(
    location: LedgerLocation,
    line: type[Line],
    groups: Mapping[str, ColumnElement[Any]],
    *conditions: ColumnElement[bool],
    **sums: ColumnElement[Any],
) -> list[Line]:
    columns = {**_SUMS, **groups, **sums}
    by = [*groups.values(), _U.currency]
    query = select(*(columns[field.name] for field in fields(line))).where(*conditions)
    return [line(*row) for row in rows_of(location, query.group_by(*by).order_by(*by))]


def usage_by_key(
    location: LedgerLocation, since: datetime | None = None, until: datetime | None = None
) -> list[KeyUsage]:
    """Read usage and cost per API key and currency, without pings and imported rows, by name.

    Args:
        since: first moment that is counted, with a time zone; None counts from the start.
        until: first moment that is no longer counted; None counts to the end.

    Raises:
        UserError: if the ledger is missing or none, or a time has no zone.
        RetryableError: if a database server cannot be reached.
    """
    conditions = _U.kind == "request", within(since, until)
    return _grouped(location, KeyUsage, {"key": _U.key}, *conditions)


def totals_by_upstream(
    location: LedgerLocation, since: datetime | None = None, until: datetime | None = None
) -> list[UpstreamTotals]:
    """Read totals per upstream, model and currency, imported rows left out; see `usage_by_key`."""
    reported = 1 - _U.estimated
    return _grouped(
        location,
        UpstreamTotals,
        {"upstream": _U.upstream, "model_served": _U.model_served},
        _U.kind != "imported",
        within(since, until),
        prompt_tokens=_total(_U.prompt_tokens * reported),
        completion_tokens=_total(_U.completion_tokens * reported),
    )


def rows_between(
    location: LedgerLocation,
    since: datetime | None = None,
    until: datetime | None = None,
    *,
    kinds: Sequence[str] = ("request",),
) -> list[UsageRow]:
    """Read the attempts of some kinds in the order in which they began; see `usage_by_key`."""
    query = (
        select(*(_U[name] for name in COLUMNS))
        .where(_U.kind.in_(kinds), within(since, until))
        .order_by(_U.time, _U.attempt)
    )
    return [UsageRow(*row) for row in rows_of(location, query)]


def rows_of(location: LedgerLocation, query: Executable) -> list[tuple[Any, ...]]:
    """Run a query over a ledger.

    Raises:
        UserError, RetryableError: see `reading`.
    """
    with reading(location) as connection:
        return [tuple(row) for row in connection.execute(query)]


def within(since: datetime | None, until: datetime | None) -> ColumnElement[bool]:
    """Return the condition that an attempt began in a window of time.

    Raises:
        UserError: if a time has no zone.
    """
    conditions = [_U.time >= _epoch(since)] if since else []
    if until:
        conditions.append(_U.time < _epoch(until))
    return and_(True, *conditions)


def _epoch(moment: datetime) -> float:
    if moment.tzinfo is None:
        raise UserError(f"{moment.isoformat()} has no time zone; add one, such as +00:00")
    return moment.timestamp()


@dataclass(frozen=True)
class Group:
    """Usage of one key, user, model or day.

    Attributes:
        name: of the key, the user (empty: none was named), the model, or the day in UTC.
        attempts: attempts at upstreams; a request that fell back has more than one.
        prompt_tokens: of all attempts, as `completion_tokens` and `cost`.
        served_prompt_tokens: of the attempts whose answer was served, as
            `served_completion_tokens`: what an API would have billed.
    """

    name: str
    requests: int
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    currency: str
    served_prompt_tokens: int
    served_completion_tokens: int


@dataclass(frozen=True)
class ApiPrice:
    """What an API bills for a million prompt and completion tokens, in the ledger's currency."""

    prompt: float
    completion: float

    def of(self, group: Group) -> float:
        """Return what the served tokens of a group would have cost."""
        return (
            group.served_prompt_tokens * self.prompt
            + group.served_completion_tokens * self.completion
        ) / _MILLION


@dataclass(frozen=True)
class BreakEven:
    """Whether machines are cheaper than an API.

    Attributes:
        cost: what all requests cost by the ledger.
        api_cost: what they would have cost at the API.
        requests_per_hour: from the first request of the window to its last, over an hour at least.
        from_requests_per_hour: requests of the same mix in an hour, from which on a machine is
            cheaper; None without its price, or if the API costs nothing.
    """

    cost: float
    api_cost: float
    requests_per_hour: float
    from_requests_per_hour: float | None


def costs(
    location: LedgerLocation, by: By, since: datetime | None = None, until: datetime | None = None
) -> list[Group]:
    """Sum up the ledger by group and currency, imported rows included; see `usage_by_key`.

    Days come in their order, the others by cost, the dearest first.
    """
    conditions = _U.kind.in_(_PAID), within(since, until)
    found = _grouped(location, Group, {"name": _group(by)}, *conditions)
    found = [replace(group, name=_name(by, group.name)) for group in found]
    if by == "day":
        return sorted(found, key=lambda g: (g.name, g.currency))
    return sorted(found, key=lambda g: (-g.cost, g.name, g.currency))


def break_even(
    location: LedgerLocation,
    groups: Sequence[Group],
    price: ApiPrice,
    *,
    hourly_cost: float | None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> BreakEven:
    """Compare what requests cost with the price of an API.

    Args:
        groups: all groups of the window, see `costs`.
        hourly_cost: what the machines cost in an hour, busy or not; None leaves the rate out.

    Raises:
        UserError: if the ledger has more than one currency, or no request in the window.
    """
    if len(currencies := {group.currency for group in groups}) > 1:
        raise UserError(
            f"one API price can't be held against {', '.join(sorted(currencies))}; "
            "choose a window of one currency by --since and --until"
        )
    if not groups:
        raise UserError("the ledger has no requests in that window to compare with an API")
    query = select(func.min(_U.time), func.max(_U.time), func.count(distinct(_U.request_id))).where(
        _U.kind.in_(_PAID), within(since, until)
    )
    ((first, last, requests),) = rows_of(location, query)
    api_cost = sum(map(price.of, groups))
    hours = max((last - first) / _SECONDS_PER_HOUR, 1.0)
    return BreakEven(
        cost=sum(group.cost for group in groups),
        api_cost=api_cost,
        requests_per_hour=requests / hours,
        from_requests_per_hour=(
            hourly_cost * requests / api_cost if hourly_cost is not None and api_cost else None
        ),
    )


def _group(by: By) -> ColumnElement[str]:
    if by == "day":
        # Days since 1970: an expression that both databases have.
        return cast(cast(func.floor(_U.time / _DAY_S), _U.attempt.type), Text)
    return {"key": _U.key, "user": _U.user_id, "model": _U.model}[by]


def _name(by: By, value: str) -> str:
    return periods(int(value) * _DAY_S)[0] if by == "day" else value


def as_table(by: str, groups: Sequence[Group], price: ApiPrice | None) -> str:
    """Return an aligned table with a line of sums for each currency."""
    head = [by, *_COLUMNS, *(["api_cost"] if price else [])]
    lines = [head, *(_cells(group.name or "(none)", group, price) for group in groups)]
    for currency in sorted({group.currency for group in groups}):
        some = [group for group in groups if group.currency == currency]
        lines.append(_cells("total", _sum(some), price))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in lines
    )


def as_csv(by: str, groups: Sequence[Group], price: ApiPrice | None) -> str:
    """Return CSV with full numbers; a name that looks like a formula begins with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([by, *_COLUMNS, *(["api_cost"] if price else [])])
    for group in groups:
        name = f"'{group.name}" if group.name.startswith(_FORMULA) else group.name
        values = [getattr(group, column) for column in _COLUMNS]
        writer.writerow([name, *values, *([price.of(group)] if price else [])])
    return out.getvalue()


def as_json(
    by: str, groups: Sequence[Group], price: ApiPrice | None, compared: BreakEven | None
) -> str:
    """Return JSON: the groups and, against an API, the comparison."""
    rows = [
        {
            by: group.name,
            **{name: getattr(group, name) for name in _COLUMNS},
            **({"api_cost": price.of(group)} if price else {}),
        }
        for group in groups
    ]
    document: dict[str, object] = {"by": by, "rows": rows}
    if compared:
        document["against"] = asdict(compared)
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def describe(compared: BreakEven, currency: str) -> str:
    """Return the comparison with an API in sentences."""
    text = (
        f"These requests cost {compared.cost:.6f} {currency}; at the API's price they would have "
        f"cost {compared.api_cost:.6f}."
    )
    if compared.from_requests_per_hour is not None:
        text += (
            f" The machines are cheaper from {compared.from_requests_per_hour:.1f} such requests "
            f"an hour; there were {compared.requests_per_hour:.1f}."
        )
    return text + "\n"


def _cells(name: str, group: Group, price: ApiPrice | None) -> list[str]:
    cells = [name, f"{group.requests}", f"{group.attempts}"]
    cells += [f"{group.prompt_tokens}", f"{group.completion_tokens}"]
    cells += [f"{group.cost:.6f}", group.currency]
    return [*cells, f"{price.of(group):.6f}"] if price else cells


def _sum(groups: Sequence[Group]) -> Group:
    numbers = [field.name for field in fields(Group) if field.name not in ("name", "currency")]
    sums = {name: sum(getattr(group, name) for group in groups) for name in numbers}
    return replace(groups[0], name="total", **sums)
