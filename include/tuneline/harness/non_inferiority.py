"""Decide from paired answers if a model is not worse than another by more than a margin.

The interval of the paired difference is Tango's score interval ("Equivalence test and confidence
interval for the difference in proportions for the paired-sample design", Statistics in Medicine 17,
1998): the differences that the score test does not reject. It keeps its coverage where the two
models hardly ever disagree, which is the usual case here and where Wald's interval fails. A model
is not inferior if the lower end of the two-sided 95 % interval is not below minus the margin
(ICH E9 and E10: one-sided, 2.5 %).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tuneline.harness.intervals import Z95, Interval, Paired

# One-sided 80 % of the normal distribution: the power that a larger sample is planned for.
_Z_POWER = 0.841621
# Standard errors between a limit and what is shown to lie beyond it with that power.
Z_SHOWN = Z95 + _Z_POWER
# Halvings of an interval of width 2: far below any rounding of the evidence.
_HALVINGS = 60

Decision = Literal["not worse", "worse", "undecided"]


def score_interval(gained: int, lost: int, rows: int) -> Interval:
    """Return the difference of two paired shares with Tango's 95 % score interval.

    Args:
        gained: rows on which only the new model is right.
        lost: rows on which only the old model is right.
        rows: all rows, at least one.

    Raises:
        ValueError: if there are no rows, or fewer than the two models disagree on.
    """
    if rows < max(1, gained + lost):
        raise ValueError(f"{gained} + {lost} rows differ of {rows}")
    value = (gained - lost) / rows

    def score(difference: float) -> float:
        return _score(gained, lost, rows, difference)

    lower = _root(lambda d: score(d) - Z95, -1.0, value)
    upper = _root(lambda d: score(d) + Z95, value, 1.0)
    return Interval(value, lower, upper, round((upper - lower) / (2 * Z95), 6))


def _score(gained: int, lost: int, rows: int, difference: float) -> float:
    """Return Tango's statistic of a hypothetical difference; it falls as the difference grows."""
    a = 2 * rows
    b = -gained - lost + (2 * rows - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    # The share of rows that only the old model gets right, most likely under the hypothesis.
    share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = rows * (2 * share + difference * (1 - difference))
    distance = gained - lost - rows * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Return where a falling function crosses zero between two points."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class NonInferiority:
    """The comparison of a new model with an old one on the same rows.

    Attributes:
        difference: share right of the new model minus that of the old one.
        gained: rows on which only the new model is right, or scores higher.
        lost: rows on which only the old model is right, or scores higher.
        rows: all rows.
        margin: share of the rows, or part of the metric, by which the new model may be worse.
        spread: mean square of the differences of single rows.
        fewest: rows on which models that always agree are shown to be not worse.
    """

    difference: Interval
    gained: int
    lost: int
    rows: int
    margin: float
    spread: float
    fewest: int

    @property
    def decision(self) -> Decision:
        """`worse` if the old model is better beyond chance and the margin may be exceeded."""
        if self.difference.lower >= -self.margin:
            return "not worse"
        return "worse" if self.difference.upper < 0 else "undecided"

    @property
    def rows_needed(self) -> int:
        """Rows that decide with a probability of 80 % if models go on to differ as they did.

        Where the difference measured is within the margin, they are those that show it; else
        those that show the new model to be worse.
        """
        z, value = Z_SHOWN, self.difference.value
        # A better model is planned for as an equal one.
        least = min(value, 0.0)
        distance = self.margin + least if least > -self.margin else -least
        needed = z * z * max(0.0, self.spread - least * least) / (distance * distance)
        return max(math.ceil(needed), self.fewest, self.rows + 1)


def rows_for(margin: float) -> int:
    """Return the rows on which a model that always agrees is shown to be not worse.

    Two models that never disagree have the interval -z²/(n + z²) to z²/(n + z²).

    Args:
        margin: share of the rows by which the new model may be worse.
    """
    return math.ceil(Z95 * Z95 * (1 - margin) / margin)


def non_inferiority(old: list[bool], new: list[bool], margin: float) -> NonInferiority:
    """Compare two models on the same rows.

    Args:
        old: whether each answer of the old model is right, at least one.
        new: the same of the new model, in the same order.
        margin: share of the rows by which the new model may be worse.

    Raises:
        ValueError: if there are no rows, or not as many of both.
    """
    lost = sum(a and not b for a, b in zip(old, new, strict=True))
    gained = sum(b and not a for a, b in zip(old, new, strict=True))
    interval = score_interval(gained, lost, len(old))
    rows = len(old)
    spread = (gained + lost) / rows
    return NonInferiority(interval, gained, lost, rows, margin, spread, rows_for(margin))


def of_interval(found: Paired, rows: int, margin: float, spread: float) -> NonInferiority:
    """Compare two models by the difference of a metric that is no share of right rows.

    Args:
        found: metric of the new model minus that of the old one, with an interval that never has a
            width of zero.
        rows: all rows.
        margin: how much lower the metric of the new model may be.
        spread: mean square of the differences of single rows.
    """
    # Models that never differ have an error of 1 over the rows (`bootstrap.mean_difference`).
    fewest = math.ceil(Z95 / margin)
    return NonInferiority(
        found.difference, found.only_second, found.only_first, rows, margin, spread, fewest
    )
