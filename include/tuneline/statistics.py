"""Compute exact intervals of shares, of counts, and of weighted counts.

Sources: Clopper and Pearson (1934) for a share; Garwood (1936) for a count; Fay and Feuer,
"Confidence intervals for directly standardized rates: a method based on the gamma distribution"
(Statistics in Medicine 16, 1997), for a weighted sum of counts, which is never too narrow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

# Probability that a bound is wrong, on each side: two-sided 95 %.
TAIL = 0.025


class Bounds(NamedTuple):
    """An estimate with its confidence interval, of 95 % unless stated."""

    value: float
    lower: float
    upper: float


def share_of(successes: int, n: int, tail: float = TAIL) -> Bounds:
    """Return a share with its Clopper-Pearson interval.

    Args:
        successes: number of successes.
        n: number of trials.
        tail: probability that a bound is wrong, on each side.

    Raises:
        ValueError: if `n` is not positive or below the number of successes.
    """
    from scipy.special import betaincinv

    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} of {n} is not a share")
    lower = betaincinv(successes, n - successes + 1, tail) if successes else 0.0
    upper = betaincinv(successes + 1, n - successes, 1 - tail) if successes < n else 1.0
    return Bounds(successes / n, float(lower), float(upper))


def drawn_share(hits: int, drawn: int, total: int) -> Bounds:
    """Return the share of hits among `total` of which `drawn` were tried, hypergeometric.

    The interval has no width if all of them were tried.

    Args:
        hits: hits among those that were tried.
        drawn: number of those that were tried, at least one.
        total: number of all.
    """
    from scipy.stats import hypergeom

    # All that fit what was seen, from as many as were hit to all but those that were not.
    possible = range(hits, total - (drawn - hits) + 1)
    below = bisect_left(
        possible, True, key=lambda k: hypergeom.sf(hits - 1, total, k, drawn) > TAIL
    )
    within = bisect_left(possible, True, key=lambda k: hypergeom.cdf(hits, total, k, drawn) <= TAIL)
    return Bounds(hits / drawn, possible[below] / total, possible[within - 1] / total)


def weighted_count(counts: Sequence[int], weights: Sequence[float]) -> Bounds:
    """Return a weighted sum of independent counts with its interval.

    Args:
        counts: events of each stratum.
        weights: weight of an event of each stratum, such as population over sample.

    Raises:
        ValueError: if there is no stratum.
    """
    from scipy.special import gammaincinv

    value = sum(c * w for c, w in zip(counts, weights, strict=True))
    variance = sum(c * w * w for c, w in zip(counts, weights, strict=True))
    most = max(weights)
    lower = 0.0
    if value:
        lower = variance / value * float(gammaincinv(value**2 / variance, TAIL))
    upper, spread = value + most, variance + most**2
    return Bounds(value, lower, spread / upper * float(gammaincinv(upper**2 / spread, 1 - TAIL)))
