"""What requests cost, by key, user, model or day, and what they would have cost at an API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias, get_args

from sqlalchemy import ColumnElement, Text, cast, distinct, func, select

from tuneline.errors import UserError
from tuneline.serving.gateway.ledger_database import Place, periods
from tuneline.serving.gateway.ledger_schema import USAGE
from tuneline.serving.gateway.usage import rows_of, total, within

By: TypeAlias = Literal["key", "user", "model", "day"]
GROUPS: tuple[By, ...] = get_args(By)

_MILLION = 1e6
_DAY_S = 86_400
_SECONDS_PER_HOUR = 3600.0
# Paid for by clients, here or at another gateway; pings and warm-up are not.
_PAID = ("request", "imported")


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
    place: Place, by: By, since: datetime | None = None, until: datetime | None = None
) -> list[Group]:
    """Sum up the ledger, imported rows included, pings and warm-up left out.

    Args:
        place: the ledger's file or URL.
        by: what makes a group.
        since: first moment that is counted; None counts from the start.
        until: first moment that is no longer counted; None counts to the end.

    Returns:
        One row per group and currency; days in their order, the others by cost, the dearest first.

    Raises:
        UserError, RetryableError: see `usage_by_key`.
    """
    u = USAGE.c
    group, served = _group(by), u.served
    query = (
        select(
            group,
            func.count(distinct(u.request_id)),
            func.count(),
            total(u.prompt_tokens),
            total(u.completion_tokens),
            func.sum(u.cost),
            u.currency,
            total(u.prompt_tokens * served),
            total(u.completion_tokens * served),
        )
        .where(u.kind.in_(_PAID), within(since, until))
        .group_by(group, u.currency)
    )
    found = [Group(_name(by, row[0]), *row[1:]) for row in rows_of(place, query)]
    if by == "day":
        return sorted(found, key=lambda g: (g.name, g.currency))
    return sorted(found, key=lambda g: (-g.cost, g.name, g.currency))


def break_even(
    place: Place,
    groups: Sequence[Group],
    price: ApiPrice,
    *,
    hourly_cost: float | None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> BreakEven:
    """Compare what requests cost with the price of an API.

    Args:
        place: the ledger's file or URL.
        groups: all groups of the window, see `costs`.
        price: the API's.
        hourly_cost: what the machines cost in an hour, busy or not; None leaves the rate out.
        since: as for `costs`.
        until: as for `costs`.

    Raises:
        UserError: if the ledger has more than one currency, or none of its requests is in the
            window.
    """
    if len(currencies := {group.currency for group in groups}) > 1:
        raise UserError(
            f"one API price can't be held against {', '.join(sorted(currencies))}; "
            "choose a window of one currency by --since and --until"
        )
    if not groups:
        raise UserError("the ledger has no requests in that window to compare with an API")
    u = USAGE.c
    query = select(func.min(u.time), func.max(u.time), func.count(distinct(u.request_id))).where(
        u.kind.in_(_PAID), within(since, until)
    )
    ((first, last, requests),) = rows_of(place, query)
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
    u = USAGE.c
    if by == "day":
        # Days since 1970: an expression that both databases have.
        return cast(cast(func.floor(u.time / _DAY_S), u.attempt.type), Text)
    return {"key": u.key, "user": u.user_id, "model": u.model}[by]


def _name(by: By, value: str) -> str:
    return periods(int(value) * _DAY_S)[0] if by == "day" else value
