"""Lay out a measurement with its interval, its limit and an earlier value on a short line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneline.evidence import Evidence, Measurement, Record

# Half the width of a 95 % interval, in standard errors.
_Z = 1.96
# Free space at both ends of the line, as a share of it.
_MARGIN = 0.06
_DIRECTIONS = {"<": "below", "<=": "below", ">": "above", ">=": "above"}


@dataclass(frozen=True)
class Bar:
    """Positions on a line, 0 (left) to 100 (right); None for what is not known."""

    value: float
    limit: float | None = None
    side: str = ""  # of the limit on which values hold: `below` or `above`
    interval: tuple[float, float] | None = None
    before: float | None = None


@dataclass(frozen=True)
class Figure:
    """A measurement as it is shown, with its value in the last release (None if it has none)."""

    m: Measurement
    before: Any
    bar: Bar | None


def figures(found: Evidence | Record, before: Evidence | None) -> list[Figure]:
    """Return the measurements of an item, each next to that of the last release."""
    values = {m.name: m.value for m in found.measurements}
    earlier = {m.name: m.value for m in before.measurements} if before else {}
    return [
        Figure(m, earlier.get(m.name), bar_of(m, values, earlier.get(m.name)))
        for m in found.measurements
    ]


def bar_of(m: Measurement, values: Mapping[str, Any], before: Any) -> Bar | None:
    """Return the bar of a measurement with a limit, None if there is nothing to compare.

    Args:
        values: all measurements of its item by name; `x_lower` and `x_upper` bound `x`.
    """
    side = _DIRECTIONS.get(m.rule or "", "")
    limit, earlier = _number(m.limit), _number(before)
    interval = _interval(m, values)
    stem = _stem(m.name)
    value = _number(values.get(stem) if interval and stem != m.name else m.value)
    if not side or value is None or limit is None:
        return None
    points = [value, limit, *(interval or ()), *([] if earlier is None else [earlier])]
    low, high = min(*points, 0.0), max(points)
    if not high > low or not math.isfinite(high - low):
        return None

    def at(point: float) -> float:
        return round(100 * (_MARGIN + (1 - 2 * _MARGIN) * (point - low) / (high - low)), 1)

    return Bar(
        at(value),
        at(limit),
        side,
        (at(interval[0]), at(interval[1])) if interval else None,
        None if earlier is None else at(earlier),
    )


def _interval(m: Measurement, values: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the 95 % interval around a measurement, stated or by its standard error."""
    stem = _stem(m.name)
    low, high = _number(values.get(f"{stem}_lower")), _number(values.get(f"{stem}_upper"))
    if low is not None and high is not None and low <= high:
        return low, high
    value = _number(m.value)
    if value is None or not m.noise or not math.isfinite(m.noise):
        return None
    return value - _Z * m.noise, value + _Z * m.noise


def _stem(name: str) -> str:
    return name.removesuffix("_lower").removesuffix("_upper")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
