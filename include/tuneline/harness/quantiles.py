"""Quantiles of a sample, with intervals that assume no distribution.

The interval of a quantile lies between two order statistics whose ranks follow from the binomial
distribution (Conover, *Practical Nonparametric Statistics*, 3rd ed., section 3.2; Hahn and Meeker,
*Statistical Intervals*, section 5.2). It holds for independent values of any distribution. A sample
that is too small has no such interval, and then the quantile is not claimed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# What is left outside of a two-sided interval of 95 %, on each side.
TAIL = 0.025


@dataclass(frozen=True)
class Quantile:
    """A quantile of a sample, with its distribution-free interval of at least 95 %."""

    value: float
    lower: float
    upper: float


def samples_needed(share: float) -> int:
    """Return the smallest sample that a quantile can be claimed of.

    Args:
        share: the share of values below the quantile, between 0 and 1: 0.95 for p95.
    """
    return math.ceil(math.log(TAIL) / math.log(max(share, 1 - share)))


def percentile(values: Sequence[float], q: float) -> float:
    """Return a percentile, `q` from 0 to 100; NaN of no values."""
    return float(np.percentile(values, q)) if values else math.nan


def quantile(values: Sequence[float], share: float) -> Quantile | None:
    """Return a quantile; None if the sample is too small to claim it.

    Args:
        values: the sample, in any order.
        share: the share of values below the quantile, between 0 and 1.
    """
    from scipy.stats import binom

    n = len(values)
    if n < samples_needed(share):
        return None
    ordered = sorted(values)
    lower, upper = (int(binom.ppf(tail, n, share)) for tail in (TAIL, 1 - TAIL))
    # Ranks count from 1; the upper one is the first that a quantile exceeds too rarely.
    return Quantile(percentile(ordered, 100 * share), ordered[lower - 1], ordered[upper])
