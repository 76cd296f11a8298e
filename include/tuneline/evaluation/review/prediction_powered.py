"""Combine few votes of people with many of a judge: prediction-powered inference (PPI).

Source: Angelopoulos, Bates, Fannjiang, Jordan and Zrnic, "Prediction-powered inference" (Science,
2023), with the weight of the judge tuned as in PPI++ (Angelopoulos, Duchi and Zrnic, 2023): the
judge's mean over many pairs, corrected by how far people differ from it on the pairs that both
voted on. The bias of a judge is corrected, and widens the interval.

Both papers' intervals are asymptotic. With ten pairs and a win rate near 1 they cover 50 to 75 %
instead of 95 % (the votes seen are often all alike, and their variance 0). So two pairs are added
on which people and a judge without an opinion differ once each way, as Agresti and Coull (1998) do
for a share, and Student's t takes the place of the normal distribution. What is left: at 20 pairs
and a judge that is strongly biased, the 95 % interval holds the true rate in 92 % of simulated
reviews and lies above one half in 6 % of even ones (2.5 % nominal). So it informs and decides
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneline.harness.intervals import Interval

# Fewer say too little of where people differ from the judge.
LEAST_PAIRS = 20
_TIE = 0.5


@dataclass(frozen=True)
class PredictionPowered:
    """A win rate from both kinds of votes.

    Attributes:
        win_rate: the estimate and its interval.
        weight: weight of the judge's votes, 0 (not used) to 1.
        pairs: pairs that people and the judge voted on.
        judged: pairs that the judge alone voted on.
    """

    win_rate: Interval
    weight: float
    pairs: int
    judged: int


def prediction_powered(
    people: Sequence[float], judge: Sequence[float], judge_alone: Sequence[float], alpha: float
) -> PredictionPowered:
    """Return the win rate that people would give on all pairs, with its interval.

    The pairs of people must be a random draw from all pairs that the judge voted on.

    Args:
        people: what each pair counts by people: 1, 0 or 0.5; at least `LEAST_PAIRS`.
        judge: the same by the judge, on the same pairs.
        judge_alone: the same by the judge, on the other pairs; at least two.
        alpha: the interval holds the true win rate with a probability of 1 - alpha.

    Raises:
        ValueError: if there are too few pairs.
    """
    if len(people) < LEAST_PAIRS or len(judge_alone) < 2:
        raise ValueError(f"needs {LEAST_PAIRS} pairs of people and two of the judge alone")
    from scipy.stats import t

    y, f, others = (np.asarray(values, float) for values in (people, judge, judge_alone))
    weight = _weight(y, f, others)
    # A person's win and a person's loss where the judge says tie.
    corrections = np.concatenate([y - weight * f, np.array([1.0, 0.0]) - weight * _TIE])
    value = weight * others.mean() + corrections.mean()
    variance = corrections.var(ddof=1) / len(corrections)
    variance += weight**2 * others.var(ddof=1) / len(others)
    error = float(np.sqrt(variance))
    spread = float(t.ppf(1 - alpha / 2, len(y) - 1)) * error
    interval = Interval(
        float(min(1.0, max(0.0, value))),
        float(max(0.0, value - spread)),
        float(min(1.0, value + spread)),
        round(error, 6),
    )
    return PredictionPowered(interval, round(weight, 4), len(y), len(others))


def _weight(
    people: NDArray[np.float64], judge: NDArray[np.float64], others: NDArray[np.float64]
) -> float:
    """Return the weight that makes the variance smallest (PPI++, example 6.1 for a mean)."""
    spread = np.concatenate([judge, others]).var(ddof=1)
    if spread == 0:
        return 0.0
    together = np.cov(people, judge)[0, 1]
    return float(np.clip(together / ((1 + len(people) / len(others)) * spread), 0, 1))
