"""Compute confidence intervals and tests for shares, alone and paired.

Sources: Wilson (1927) for one share; Agresti and Min (2005), "Simple improved confidence
intervals for comparing matched proportions", for a paired difference; the exact binomial form
of McNemar's test (1947), which is the sign test on the rows where the two disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95 % of the normal distribution.
Z95 = 1.959964


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval and standard error."""

    value: float
    lower: float
    upper: float
    error: float

    def text(self) -> str:
        """Return the estimate and its interval, as `0.923 [0.860, 0.960]`."""
        return f"{self.value:.3f} [{self.lower:.3f}, {self.upper:.3f}]"


def share(right: Sequence[bool]) -> Interval:
    """Return the share of true values with its Wilson score interval.

    Args:
        right: a flag for each row, at least one.

    Raises:
        ValueError: if there are no rows.
    """
    return wilson(sum(right), len(right))


def wilson(successes: float, n: float) -> Interval:
    """Return the Wilson score interval of `successes` in `n`; both may be fractional (ties).

    Raises:
        ValueError: if `n` is not positive.
    """
    if n <= 0:
        raise ValueError("a share needs at least one row")
    p = successes / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    spread = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n)) / (1 + Z95**2 / n)
    # The interval's half-width over z is a standard error that is not zero at p = 0 or 1.
    return Interval(p, max(0.0, centre - spread), min(1.0, centre + spread), round(spread / Z95, 6))


@dataclass(frozen=True)
class Paired:
    """The difference of two shares measured on the same rows.

    Attributes:
        difference: the second share minus the first.
        only_first: rows on which only the first is right.
        only_second: rows on which only the second is right.
        p_value: two-sided p-value of McNemar's exact test.
    """

    difference: Interval
    only_first: int
    only_second: int
    p_value: float


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Return how much more often the second is right than the first, on the same rows.

    The interval is Agresti and Min's: Wald's on counts with half a row added to each cell.
    Its width is not zero even if the two always agree.

    Args:
        first: a flag for each row.
        second: a flag for each row, in the same order.

    Raises:
        ValueError: if there are no rows, or not as many of both.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"paired shares need equal rows, got {len(first)} and {len(second)}")
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    return paired_counts(lost, gained, len(first))


def paired_counts(lost: int, gained: int, n: int) -> Paired:
    """Return the paired difference of counts; see `paired`.

    Args:
        lost: rows on which only the first is right.
        gained: rows on which only the second is right.
        n: all rows, at least one.
    """
    size, up, down = n + 2, gained + 0.5, lost + 0.5
    centre = (up - down) / size
    error = math.sqrt(up + down - (up - down) ** 2 / size) / size
    interval = Interval(
        (gained - lost) / n,
        max(-1.0, centre - Z95 * error),
        min(1.0, centre + Z95 * error),
        round(error, 6),
    )
    return Paired(interval, lost, gained, sign_test(gained, lost))


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the exact sign test: wins and losses are equally likely."""
    n = wins + losses
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)
