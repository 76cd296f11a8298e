"""Confidence intervals and tests: of shares, counts, paired differences, quantiles and losses.

Sources: Wilson (1927), Clopper and Pearson (1934), for a share; Garwood (1936) for a count; Fay and
Feuer (Statistics in Medicine 16, 1997), for a weighted sum of counts, never too narrow; Fay,
Proschan and Brittain (Biometrics 71, 2015), for two estimates melded into one; Agresti and Min
(2005) for a paired difference; McNemar (1947), exact: the sign test on rows that disagree.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Weights = NDArray[np.int64]
    Statistic = Callable[[Weights], NDArray[np.float64]]

# Probability that a bound is wrong, on each side: two-sided 95 %.
TAIL = 0.025


class Bounds(NamedTuple):
    """An estimate with its confidence interval, of 95 % unless stated."""

    value: float
    lower: float
    upper: float


def share_of(successes: int, n: int, tail: float = TAIL) -> Bounds:
    """Return a share with its Clopper-Pearson interval; `tail` is the error on each side."""
    from scipy.special import betaincinv

    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} of {n} is not a share")
    lower = betaincinv(successes, n - successes + 1, tail) if successes else 0.0
    upper = betaincinv(successes + 1, n - successes, 1 - tail) if successes < n else 1.0
    return Bounds(successes / n, float(lower), float(upper))


def drawn_share(hits: int, drawn: int, total: int) -> Bounds:
    """Return the share of hits among `total` of which `drawn` were tried, hypergeometric.

    The interval has no width if all of them were tried.
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
    """Return the sum of independent counts, each with its weight, and its interval."""
    from scipy.special import gammaincinv

    value = sum(c * w for c, w in zip(counts, weights, strict=True))
    variance = sum(c * w * w for c, w in zip(counts, weights, strict=True))
    most = max(weights)
    lower = 0.0
    if value:
        lower = variance / value * float(gammaincinv(value**2 / variance, TAIL))
    upper, spread = value + most, variance + most**2
    return Bounds(value, lower, spread / upper * float(gammaincinv(upper**2 / spread, 1 - TAIL)))


def count_times_odds(count: int, successes: int, n: int) -> Bounds:
    """Return a Poisson count times the odds of a share, with the melded interval of the two.

    Each end takes the distributions whose quantiles are the ends of Garwood's and of Clopper and
    Pearson's interval. Without failures value and upper end are infinite.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.special import betaincinv, gammainc, gammaincinv

    def end(more: int, level: float) -> float:
        shape, right, wrong = count + more, successes + more, n - successes + 1 - more
        if not (shape and right and wrong):
            return 0.0 if wrong else math.inf
        shares = betaincinv(right, wrong, (np.arange(1000) + 0.5) / 1000)
        odds = shares / (1 - shares)
        most = float(gammaincinv(shape, 0.9999) * odds.max())
        return float(brentq(lambda x: np.mean(gammainc(shape, x / odds)) - level, 0, most))

    value = count * successes / (n - successes) if successes < n else math.inf
    return Bounds(value, end(0, TAIL), end(1, 1 - TAIL))


# Two-sided 95 % of the normal distribution.
Z95 = 1.959964


def z_of(tail: float = TAIL) -> float:
    """Return how many standard errors an end of an interval is away; `tail` is its error."""
    return NormalDist().inv_cdf(1 - tail)


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval (95 % unless stated) and standard error."""

    value: float
    lower: float
    upper: float
    error: float

    def text(self) -> str:
        """Return the estimate and its interval, as `0.923 [0.860, 0.960]`."""
        return f"{self.value:.3f} [{self.lower:.3f}, {self.upper:.3f}]"


def share(right: Sequence[bool]) -> Interval:
    """Return the share of true values, of one at least, with its Wilson score interval."""
    return wilson(sum(right), len(right))


def wilson(successes: float, n: float, tail: float = TAIL) -> Interval:
    """Return the Wilson score interval of `successes` in `n`; both may be fractional (ties)."""
    if n <= 0:
        raise ValueError("a share needs at least one row")
    p, z = min(1.0, successes / n), z_of(tail)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    spread = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n * n)) / (1 + z**2 / n)
    # The interval's half-width over z is a standard error that is not zero at p = 0 or 1.
    return Interval(p, max(0.0, centre - spread), min(1.0, centre + spread), round(spread / z, 6))


@dataclass(frozen=True)
class Paired:
    """The second share minus the first, on the same rows, and McNemar's exact p-value, two-sided.

    `only_first` and `only_second`: rows on which only the one is right, or scores higher.
    """

    difference: Interval
    only_first: int
    only_second: int
    p_value: float


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Return how much more often the second is right than the first, on the same rows.

    The interval is Agresti and Min's: Wald's on counts with half a row added to each cell. Its
    width is not zero even if the two always agree.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"paired shares need equal rows, got {len(first)} and {len(second)}")
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    return paired_counts(lost, gained, len(first))


def paired_counts(lost: int, gained: int, n: int) -> Paired:
    """The difference on `n` rows: only the first is right on `lost`, the second on `gained`."""
    return Paired(agresti_min(lost, gained, n), lost, gained, sign_test(gained, lost))


def agresti_min(lost: float, gained: float, n: int, tail: float = TAIL) -> Interval:
    """Return the interval of a paired difference; the counts may be fractional."""
    size, up, down, z = n + 2, gained + 0.5, lost + 0.5, z_of(tail)
    centre = (up - down) / size
    error = math.sqrt(up + down - (up - down) ** 2 / size) / size
    ends = max(-1.0, centre - z * error), min(1.0, centre + z * error)
    return Interval((gained - lost) / n, *ends, round(error, 6))


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the exact sign test: wins and losses are equally likely."""
    n = wins + losses
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)


def samples_needed(share: float) -> int:
    """Return the smallest sample that a quantile can be claimed of; 0.95 is p95."""
    return math.ceil(math.log(TAIL) / math.log(max(share, 1 - share)))


def percentile(values: Sequence[float], q: float) -> float:
    """Return a percentile, `q` from 0 to 100; NaN of no values."""
    import numpy as np

    return float(np.percentile(values, q)) if values else math.nan


def quantile(values: Sequence[float], share: float) -> Bounds | None:
    """Return a quantile with an interval of 95 % at least; None if the sample is too small for it.

    Between two order statistics, by the binomial distribution (Conover, *Practical Nonparametric
    Statistics*, 3rd ed., section 3.2), for independent values of any distribution.
    """
    from scipy.stats import binom

    n = len(values)
    if n < samples_needed(share):
        return None
    ordered = sorted(values)
    lower, upper = (int(binom.ppf(tail, n, share)) for tail in (TAIL, 1 - TAIL))
    # Ranks count from 1; the upper one is the first that a quantile exceeds too rarely.
    return Bounds(percentile(ordered, 100 * share), ordered[lower - 1], ordered[upper])


# The exponential of more is beyond a float.
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class RowLosses:
    """Negative log-likelihoods (nats) of the learned tokens of rows, their numbers, and weights."""

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


def rms_ratio(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Return the ratio of two root mean squares, by the sums of squares of each row.

    The 95 % interval is that of the logarithm of the ratio, normal; one row says nearly nothing.
    """
    squared = sum(first) / sum(second)
    error = _ratio_error(first, second, [1.0] * len(first), squared)
    value, relative = math.sqrt(squared), error / squared / 2 if squared else 0.0
    factor = _exponential(Z95 * relative if len(first) > 1 else _LARGEST_EXPONENT)
    return Interval(value, value / factor, value * factor, value * relative)


def _exponential(value: float) -> float:
    return math.exp(min(value, _LARGEST_EXPONENT))


def _ratio_error(
    sums: Sequence[float], targets: Sequence[float], weights: Sequence[float], mean: float
) -> float:
    """Return the standard error of a ratio of sums (Cochran, Sampling Techniques, 6.3)."""
    count = len(sums)
    if count < 2:
        return 0.0
    residuals = [w * (s - mean * n) for s, n, w in zip(sums, targets, weights, strict=True)]
    total = sum(w * n for w, n in zip(weights, targets, strict=True))
    return math.sqrt(count / (count - 1) * sum(r * r for r in residuals)) / total


# One-sided 80 % of the normal distribution: the power that a larger sample is planned for.
_Z_POWER = 0.841621


def z_shown(tail: float = TAIL) -> float:
    """Return the standard errors between a limit and what is shown beyond it with that power."""
    return z_of(tail) + _Z_POWER


# Halvings of an interval of width 2: far below any rounding of the evidence.
_HALVINGS = 60

MarginVerdict = Literal["not worse", "worse", "undecided"]


def score_interval(gained: float, lost: float, rows: int, tail: float = TAIL) -> Interval:
    """Return the difference of two paired shares with Tango's score interval.

    Statistics in Medicine 17, 1998: the differences that the score test does not reject. It keeps
    its coverage where two models hardly ever disagree, the usual case here. `gained` are rows on
    which only the new model is right, `lost` only the old one, fractions where rows count in part;
    ValueError if they exceed the rows.
    """
    if rows < max(1, gained + lost):
        raise ValueError(f"{gained} + {lost} rows differ of {rows}")
    value, z = (gained - lost) / rows, z_of(tail)

    def score(difference: float) -> float:
        return _score(gained, lost, rows, difference)

    lower = _root(lambda d: score(d) - z, -1.0, value)
    upper = _root(lambda d: score(d) + z, value, 1.0)
    return Interval(value, lower, upper, round((upper - lower) / (2 * z), 6))


def _score(gained: float, lost: float, rows: int, difference: float) -> float:
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


# Rows that differ below which Tango's interval, an approximation, shows no loss by itself.
FEW_DIFFERENT = 10


@dataclass(frozen=True)
class NonInferiority:
    """The comparison of a new model with an old one on the same rows, against a margin.

    Not inferior if the lower end of the interval is not below minus the margin (ICH E9 and E10),
    worse if the upper end is. At the margin, the true error of the first is 2.6 % at most for
    margins of 0.02 to 0.12 on 40 to 1,100 rows, also where few rows differ. The second is less
    exact, so that below `FEW_DIFFERENT` rows that differ the exact sign test must show a loss too.

    Attributes:
        gained: rows on which only the new model is right, or scores higher; `lost`, the old.
        spread: mean square of the differences of single rows.
        fewest: rows on which models that always agree are shown to be not worse.
        tail: error of each end of the interval.
    """

    difference: Interval
    gained: int
    lost: int
    rows: int
    margin: float
    spread: float
    fewest: int
    tail: float = TAIL

    @property
    def decision(self) -> MarginVerdict:
        """`worse` if the new model is shown to be worse by more than the margin."""
        if self.difference.lower >= -self.margin:
            return "not worse"
        exact = sign_test(self.gained, self.lost) <= 2 * self.tail
        shown = exact or self.gained + self.lost >= FEW_DIFFERENT
        return "worse" if shown and self.difference.upper < -self.margin else "undecided"

    @property
    def rows_needed(self) -> int:
        """Rows that decide with a probability of 80 % if models go on to differ as they did.

        Where the difference measured is within the margin, they are those that show it; else
        those that show the new model to be worse. A better one is planned for as an equal one.
        """
        least = min(self.difference.value, 0.0)
        distance = max(abs(self.margin + least), 0.5 / self.rows)
        needed = max(0.0, self.spread - least * least) * (z_shown(self.tail) / distance) ** 2
        return max(math.ceil(needed), self.fewest, self.rows + 1)


def rows_for(margin: float, tail: float = TAIL) -> int:
    """Return the rows on which a model that always agrees is shown to be not worse by a margin.

    Two models that never disagree have the interval -z²/(n + z²) to z²/(n + z²).
    """
    return math.ceil(z_of(tail) ** 2 * (1 - margin) / margin)


def non_inferiority(
    old: Sequence[float], new: Sequence[float], margin: float, tail: float = TAIL
) -> NonInferiority:
    """Compare the right answers of two models on the same rows, against a share of the rows."""
    differences, rows = [b - a for a, b in zip(old, new, strict=True)], len(old)
    interval = score_interval(
        sum(d for d in differences if d > 0), sum(-d for d in differences if d < 0), rows, tail
    )
    gained, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    spread, fewest = sum(d * d for d in differences) / rows, rows_for(margin, tail)
    return NonInferiority(interval, gained, lost, rows, margin, spread, fewest, tail)


# Bootstrap: rows are drawn with replacement (Efron, 1979; the paired form for comparing two systems
# on the same rows is Koehn's, "Statistical Significance Tests for Machine Translation Evaluation",
# 2004), and the interval holds the middle 95 % of the resampled values. On few rows, or where rows
# hardly differ, that is too narrow, and of width zero if they do not differ at all. So two rows are
# added, as Agresti and Coull (1998) and Agresti and Min (2005) do for shares: scores of 0 and 1 to
# one model's, and to differences ±√½, which together have the variance of the four half rows that
# Agresti and Min add.
RESAMPLES = 4000
SEED = 20050
# Counts of rows that are held at once: 32 MB.
_BLOCK = 4_000_000
_ADDED = math.sqrt(0.5)


def mean_interval(scores: Sequence[float], tail: float = TAIL) -> Interval:
    """Return the mean of graded scores, from 0 to 1, with its interval."""
    if not scores:
        raise ValueError("a mean needs at least one row")
    value = sum(scores) / len(scores)
    lower, upper, error = _mean_limits([*scores, 0.0, 1.0], tail)
    return Interval(value, max(0.0, min(lower, value)), min(1.0, max(upper, value)), error)


def mean_difference(
    first: Sequence[float], second: Sequence[float], tail: float = TAIL
) -> Interval:
    """Return how much higher the second mean is, with its interval, paired by row."""
    if not first or len(first) != len(second):
        raise ValueError(f"paired scores need equal rows, got {len(first)} and {len(second)}")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    value = sum(differences) / len(differences)
    lower, upper, error = _mean_limits([*differences, -_ADDED, _ADDED], tail)
    return Interval(value, max(-1.0, min(lower, value)), min(1.0, max(upper, value)), error)


def _mean_limits(values: Sequence[float], tail: float) -> tuple[float, float, float]:
    import numpy as np

    array = np.asarray(values)
    return bootstrap_limits(len(array), lambda weights: weights @ array / len(array), tail)


def bootstrap_limits(
    rows: int, statistic: Statistic, tail: float = TAIL
) -> tuple[float, float, float]:
    """Return both ends of the interval of a statistic, and its standard error.

    `statistic` takes how often each row was drawn (resamples × rows), and gives a value of each.
    """
    import numpy as np

    drawn = np.concatenate([statistic(weights) for weights in _weights(rows)])
    lower, upper = np.quantile(drawn, [tail, 1 - tail])
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
    """Return the mean of the F1 of every label that is wanted, for each resample of weights.

    Shape of the weights: resamples × rows. A label that one does not want is left out of its mean.
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
