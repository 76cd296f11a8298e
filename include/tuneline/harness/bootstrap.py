"""Bootstrap intervals for scores that are no shares: means of graded scores, and macro-F1.

Rows are drawn with replacement (Efron, 1979; the paired form for comparing two systems on the same
rows is Koehn's, "Statistical Significance Tests for Machine Translation Evaluation", 2004), and
the interval holds the middle 95 % of the resampled values. On few rows, or where rows hardly
differ, that is too narrow, and of width zero if they do not differ at all. So two rows are added,
as Agresti and Coull (1998) and Agresti and Min (2005) do for shares: scores of 0 and 1 to one
model's, and to differences ±√½, which together have the variance of the four half rows that Agresti
and Min add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tuneline.harness.intervals import Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Weights = NDArray[np.int64]
    Statistic = Callable[[Weights], NDArray[np.float64]]

RESAMPLES = 4000
SEED = 20050
# Counts of rows that are held at once: 32 MB.
_BLOCK = 4_000_000
_ADDED = math.sqrt(0.5)


def mean_interval(scores: Sequence[float]) -> Interval:
    """Return the mean of graded scores with its 95 % interval.

    Args:
        scores: a score from 0 to 1 for each row, at least one.

    Raises:
        ValueError: if there are no rows.
    """
    if not scores:
        raise ValueError("a mean needs at least one row")
    value = sum(scores) / len(scores)
    lower, upper, error = _mean_limits([*scores, 0.0, 1.0])
    return Interval(value, max(0.0, min(lower, value)), min(1.0, max(upper, value)), error)


def mean_difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Return how much higher the second mean is, with its 95 % interval, paired by row.

    Raises:
        ValueError: if there are no rows, or not as many of both.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"paired scores need equal rows, got {len(first)} and {len(second)}")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    value = sum(differences) / len(differences)
    lower, upper, error = _mean_limits([*differences, -_ADDED, _ADDED])
    return Interval(value, max(-1.0, min(lower, value)), min(1.0, max(upper, value)), error)


def _mean_limits(values: Sequence[float]) -> tuple[float, float, float]:
    import numpy as np

    array = np.asarray(values)
    return limits(len(array), lambda weights: weights @ array / len(array))


def limits(rows: int, statistic: Statistic) -> tuple[float, float, float]:
    """Return both ends of the 95 % interval of a statistic, and its standard error.

    Args:
        rows: number of rows.
        statistic: takes how often each row was drawn (shape resamples × rows) and returns the
            value of each resample.
    """
    import numpy as np

    drawn = np.concatenate([statistic(weights) for weights in _weights(rows)])
    lower, upper = np.quantile(drawn, [0.025, 0.975])
    return float(lower), float(upper), round(float(drawn.std()), 6)


def _weights(rows: int) -> Iterator[Weights]:
    import numpy as np

    random = np.random.default_rng(SEED)
    block = max(1, min(RESAMPLES, _BLOCK // rows))
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        yield random.multinomial(rows, np.full(rows, 1 / rows), size=size)


def macro_f1(
    weights: Any, wanted: Sequence[str | None], named: Sequence[str | None]
) -> NDArray[np.float64]:
    """Return the macro-F1 of weighted rows: the mean of the F1 of every label that is wanted.

    Args:
        weights: weight of each row in each resample, shape resamples × rows.
        wanted: the expected label of each row.
        named: the label that each answer names, None for none.

    Returns:
        A value for each resample. A label that a resample does not want is left out of its mean.
    """
    import numpy as np

    labels = sorted({label for label in wanted if label is not None})
    want = np.array([[label == other for other in labels] for label in wanted], dtype=float)
    name = np.array([[label == other for other in labels] for label in named], dtype=float)
    found, expected, answered = weights @ (want * name), weights @ want, weights @ name
    total = expected + answered
    f1 = np.divide(2 * found, total, out=np.zeros_like(found, dtype=float), where=total > 0)
    there = expected > 0
    mean: NDArray[np.float64] = (f1 * there).sum(axis=1) / np.maximum(1, there.sum(axis=1))
    return mean
