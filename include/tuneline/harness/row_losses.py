"""Losses of rows, and the perplexity of one model over another's on the same rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.harness.intervals import Z95, Interval

# The exponential of more is beyond a float.
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class RowLosses:
    """Losses of rows.

    Attributes:
        sums: negative log-likelihood of each row's learned tokens, in nats.
        targets: number of learned tokens of each row.
        weights: weight of each row.
    """

    sums: tuple[float, ...]
    targets: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean loss of a token over the weighted rows, in nats."""
        total = sum(w * n for w, n in zip(self.weights, self.targets, strict=True))
        return sum(w * s for w, s in zip(self.weights, self.sums, strict=True)) / total

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss."""
        return _exponential(self.mean)

    @property
    def standard_error(self) -> float:
        """The standard error of the mean over the draw of rows (ratio estimator)."""
        return _ratio_error(self.sums, self.targets, self.weights, self.mean)

    def log_ratio_error(self, other: RowLosses) -> float:
        """Return the standard error of the difference to another model's mean on the same rows."""
        differences = [a - b for a, b in zip(self.sums, other.sums, strict=True)]
        return _ratio_error(differences, self.targets, self.weights, self.mean - other.mean)

    def ratio_to(self, other: RowLosses) -> Interval:
        """Return the perplexity over another model's on the same rows, paired by row.

        The 95 % interval is that of the difference of the mean losses, normal, exponentiated.
        """
        difference, error = self.mean - other.mean, self.log_ratio_error(other)
        ratio = _exponential(difference)
        return Interval(
            ratio,
            _exponential(difference - Z95 * error),
            _exponential(difference + Z95 * error),
            ratio * error,
        )


def _exponential(value: float) -> float:
    return math.exp(min(value, _LARGEST_EXPONENT))


def _ratio_error(
    sums: Sequence[float], targets: Sequence[int], weights: Sequence[float], mean: float
) -> float:
    """Return the standard error of a ratio of sums (Cochran, Sampling Techniques, 6.3)."""
    count = len(sums)
    if count < 2:
        return 0.0
    residuals = [w * (s - mean * n) for s, n, w in zip(sums, targets, weights, strict=True)]
    total = sum(w * n for w, n in zip(weights, targets, strict=True))
    return math.sqrt(count / (count - 1) * sum(r * r for r in residuals)) / total
