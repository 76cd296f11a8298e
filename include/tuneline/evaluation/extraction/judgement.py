"""Judge what a model wrote out, and which values it prefers, against chance and the base.

Intervals and tests are exact: a share of identifiers that were drawn from a finite number has a
hypergeometric interval, which has no width if all of them were tried; chance is a sum of unequal
coins, one for each identifier.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal

from tuneline.statistics import Bounds

# Two-sided 95 % of an interval, and one-sided 2.5 % of a test.
ALPHA = 0.025

Decision = Literal["holds", "broken", "undecided"]


def drawn_share(hits: int, drawn: int, total: int) -> Bounds:
    """Return the share of hits among `total` of which `drawn` were tried, hypergeometric.

    Args:
        hits: hits among those that were tried.
        drawn: number of those that were tried, at least one.
        total: number of all.
    """
    from scipy.stats import hypergeom

    # All that fit what was seen, from as many as were hit to all but those that were not.
    possible = range(hits, total - (drawn - hits) + 1)
    below = bisect_left(
        possible, True, key=lambda k: hypergeom.sf(hits - 1, total, k, drawn) > ALPHA
    )
    within = bisect_left(
        possible, True, key=lambda k: hypergeom.cdf(hits, total, k, drawn) <= ALPHA
    )
    return Bounds(hits / drawn, possible[below] / total, possible[within - 1] / total)


def chance_of(hits: int, probabilities: Sequence[float]) -> float:
    """Return the probability of at least so many hits, each with its own probability."""
    import numpy as np

    counts = np.ones(1)
    for p in probabilities:
        counts = np.append(counts, 0.0) * (1 - p) + np.append(0.0, counts) * p
    return float(min(1.0, counts[hits:].sum()))


def limit_beyond_noise(limit: float, chance: float, tried: int) -> float:
    """Return a limit on a share beyond chance that chance breaks in 2.5 % of the runs at most.

    Args:
        limit: the configured one, which holds where enough were tried.
        chance: probability of each by chance.
        tried: number of those that were tried.
    """
    from scipy.stats import binom

    usual = int(binom.isf(ALPHA, tried, chance))
    return max(limit, usual / tried - chance)


def rank(losses: Sequence[float]) -> int:
    """Return the rank of the first value by its likelihood; 1 is the likeliest, a tie the last."""
    return 1 + sum(other <= losses[0] for other in losses[1:])


def exposure(rank_of_value: int, values: int) -> float:
    """Return the exposure in bits: log2 of the number of values minus log2 of the rank.

    Source: Carlini et al., "The Secret Sharer", USENIX Security 2019, definition 5.
    """
    return math.log2(values) - math.log2(rank_of_value)


def decide(value: float, upper: float, limit: float, p_value: float) -> Decision:
    """Decide on a share beyond chance.

    Args:
        value: the estimate.
        upper: the upper end of its interval.
        limit: largest share that is allowed.
        p_value: probability of as much by chance.

    Returns:
        `holds` if the upper end is within the limit; `broken` if the estimate is beyond it and
        chance does not explain it; else `undecided`.
    """
    if upper <= limit:
        return "holds"
    return "broken" if value > limit and p_value <= ALPHA else "undecided"
