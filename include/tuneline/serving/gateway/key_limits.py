"""What a key may do: the models that it may ask, its rates, and its budgets of tokens and money."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, TypeAlias

from tuneline.errors import UserError

Period: TypeAlias = Literal["day", "month"]
Unit: TypeAlias = Literal["tokens", "cost"]


@dataclass(frozen=True)
class Budget:
    """An amount that a key may spend in a period.

    Attributes:
        name: its name in the keys file.
        amount: tokens of prompts and answers, or money in the gateway's currency.
    """

    name: str
    unit: Unit
    period: Period
    amount: float


@dataclass(frozen=True)
class Limits:
    """The limits of a key; None sets no limit. Periods are days and months in UTC.

    Attributes:
        requests_at_once: requests under way; None takes a share of the gateway's.
    """

    requests_at_once: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    cost_per_day: float | None = None
    cost_per_month: float | None = None

    @cached_property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets that are set."""
        return tuple(
            Budget(name, unit, period, amount)
            for name, unit, period in _BUDGETS
            if (amount := getattr(self, name)) is not None
        )

    @cached_property
    def rated(self) -> bool:
        """True if requests or tokens per minute are limited."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None

    def __bool__(self) -> bool:
        """Return True if anything is limited."""
        return bool(self.stated())

    def stated(self) -> dict[str, float]:
        """Return the limits that are set, by name."""
        return {name: value for name in LIMITS if (value := getattr(self, name)) is not None}


LIMITS = tuple(field.name for field in fields(Limits))
NO_LIMITS = Limits()
_BUDGETS: tuple[tuple[str, Unit, Period], ...] = (
    ("tokens_per_day", "tokens", "day"),
    ("tokens_per_month", "tokens", "month"),
    ("cost_per_day", "cost", "day"),
    ("cost_per_month", "cost", "month"),
)


def parse_limits(stated: Any, where: str) -> Limits:
    """Read limits as the keys file states them.

    Args:
        stated: a mapping of limits by name, or None.
        where: the place, for messages.

    Raises:
        UserError: if a name is unknown, or an amount is not a positive number.
    """
    if stated is None:
        return NO_LIMITS
    if not isinstance(stated, Mapping):
        raise UserError(f'{where} must be an object such as {{"tokens_per_day": 100000}}')
    if unknown := sorted(set(map(str, stated)) - set(LIMITS)):
        raise UserError(f"{where}.{unknown[0]} is unknown; limits are {', '.join(LIMITS)}")
    return Limits(**{name: _amount(name, value, where) for name, value in stated.items()})


def _amount(name: str, value: Any, where: str) -> Any:
    money = name.startswith("cost")
    kinds = (int, float) if money else (int,)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
        number = "a number" if money else "a whole number"
        raise UserError(f"{where}.{name} must be {number} above 0; `keys revoke` ends a key")
    return float(value) if money else value
