"""Bets against drift: tails, tests and the budget of a year."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
_ARRAY, _PLAIN = PlainValidator(np.array), PlainSerializer(np.ndarray.tolist)
# An empty purse (-inf) has no form in JSON; -1e9 is as empty.
_FINITE = PlainSerializer(lambda sums: np.maximum(sums, -1e9).round(6).tolist())
Sums = Annotated[Floats, _ARRAY, _FINITE]
Tally = Annotated[Counts, _ARRAY, _PLAIN]
Names = Annotated[NDArray[Any], _ARRAY, _PLAIN]

# Shares of the reference beyond each threshold.
LEVELS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
# A tail that is a tenth heavier is not drift; no two sources of prompts agree more closely.
TOLERANCE = 1.1
# Shares of a night's prompts that came from elsewhere, as the bets suppose.
CONTAMINATION = (0.01, 0.03, 0.1, 0.3)
# How the prompts from elsewhere lie, as a distribution of their p-values: P(p <= u) = u ** power,
# or evenly below a level.
POWERS = (0.1, 0.3)
EVEN_BELOW = (0.01, 0.03, 0.1, 0.3)
# Levels that a single night is tested at. Smaller ones have too few prompts in a night.
NIGHT_LEVEL = 0.009
# Rows that are taken to agree with the reference before any is checked.
PRIOR_ROWS = 200
# Checked scores to expect beyond a threshold for their number to be told from chance.
LEAST_BEYOND = 10


@dataclass(frozen=True)
class Tail:
    """Thresholds of a score, and bounds on the share of the null beyond each."""

    thresholds: Floats  # falling, shape (k,); a score is beyond one if it is at least as large
    shares: Floats  # of the null beyond them as estimated, rising, shape (k,)
    bounds: Floats  # upper bounds of these shares, shape (k,)
    odds: Floats  # log odds of each alternative in each bin, shape (alternatives, k + 1)
    reference: Floats  # sorted scores

    def log_e(self, scores: Floats) -> Floats:
        """Return log e-values, shape (..., alternatives), of scores (..., prompts)."""
        bins = np.diff(self._beyond(scores), prepend=0, append=scores.shape[-1], axis=-1)
        return np.asarray(bins @ self.odds.T)

    def tally(self, scores: Floats) -> Counts:
        """Return counts of nights that can be added: beyond each threshold, and of all prompts."""
        total = np.full((*scores.shape[:-1], 1), scores.shape[-1])
        return np.concatenate([self._beyond(scores), total], axis=-1)

    def test(self, tally: Counts) -> Floats:
        """Return the p-value of a tally: Fisher's exact test at each threshold, corrected."""
        wide = self.shares >= NIGHT_LEVEL
        if not wide.any():
            return np.ones(tally.shape[:-1])
        kept = np.append(wide, True)
        return share_test(tally[..., kept], self.shares[wide], len(self.reference))

    def _beyond(self, scores: Floats) -> Counts:
        """Return the number of scores beyond each threshold, shape (..., k)."""
        return np.asarray((scores[..., None] >= self.thresholds).sum(axis=-2))

    def p_values(self, scores: Floats) -> Floats:
        """Return the share of the reference that is as extreme as each score, it included."""
        beyond = len(self.reference) - np.searchsorted(self.reference, scores, side="left")
        return (beyond + 1) / (len(self.reference) + 1)


def calibrate(scores: Floats, checked: Floats, error: float, points: float = 0.0) -> Tail:
    """Return the tail of a score, calibrated on a reference.

    Large scores are extreme. `checked` are scores of prompts of the same source that the reference
    was not made of: they may be more extreme than its own if a split or a crowd of writers lies
    between them, and raise the bounds. `error` is the probability that any bound is too low,
    `points` the gain of a tail, as a share of all prompts, that is not drift.
    """
    from scipy.stats import beta

    reference = np.sort(scores)
    rows = len(reference)
    ranks = sorted({max(1, int(level * rows)) for level in LEVELS})
    thresholds = np.unique(reference[[rows - rank for rank in ranks]])[::-1]
    beyond = rows - np.searchsorted(reference, thresholds, side="left")
    # A score that all share has a threshold with everything beyond it, which says nothing.
    thresholds, beyond = thresholds[beyond < rows], beyond[beyond < rows]
    bounds = beta.ppf(1 - error / len(LEVELS), beyond + 1, rows - beyond)
    heavier = TOLERANCE * excess(reference, thresholds, checked)
    shares = np.maximum.accumulate(np.minimum(heavier * beyond / rows + points, 1 - 1e-6))
    bounds = np.maximum.accumulate(np.minimum(heavier * bounds + points, 1 - 1e-6))
    return Tail(thresholds, shares, bounds, _log_odds(bounds), reference)


def excess(reference: Floats, thresholds: Floats, checked: Floats) -> Floats:
    """Return how many times more checked scores than reference scores lie beyond each threshold.

    It is at least 1. The share of checked scores is drawn towards the reference's as if
    `PRIOR_ROWS` rows had been seen to agree. Thresholds that few checked scores can be beyond take
    the figure of the next one.
    """
    usual = (len(reference) - np.searchsorted(reference, thresholds, side="left")) / len(reference)
    told = usual * len(checked) >= LEAST_BEYOND
    if not told.any():
        return np.ones(len(thresholds))
    seen = (checked[:, None] >= thresholds).sum(axis=0)
    share = (seen + PRIOR_ROWS * usual) / (len(checked) + PRIOR_ROWS)
    times = np.maximum(1.0, share / usual)
    return np.asarray(np.where(told, times, times[int(np.argmax(told))]))


def _log_odds(bounds: Floats) -> Floats:
    """Return the log odds of each alternative by bin; each has a mean of 1 under the bounds."""
    below = np.append(bounds, 1.0)
    mass = np.maximum(np.diff(below, prepend=0.0), 1e-12)
    elsewhere = [below**power for power in POWERS]
    elsewhere += [np.minimum(below / level, 1.0) for level in EVEN_BELOW]
    rows = []
    for cumulative in elsewhere:
        ratio = np.diff(cumulative, prepend=0.0) / mass
        # Odds must fall from the extreme bin on, or a lighter tail would win.
        ratio = np.minimum.accumulate(ratio)
        rows += [np.log1p(share * (ratio - 1)) for share in CONTAMINATION]
    return np.array(rows)


def rate_log_e(count: int, total: int, bound: float, rates: Sequence[float]) -> Floats:
    """Return the log e-value of `count` events in `total` for each supposed rate.

    `bound` is the largest rate that is not drift; rates are above it and below 1.
    """
    supposed = np.array(rates, dtype=float)
    won = count * np.log(supposed / bound)
    return np.asarray(won + (total - count) * np.log((1 - supposed) / (1 - bound)))


def share_test(tally: Counts, shares: Floats, rows: int) -> Floats:
    """Return the p-value of counts that are larger than a reference's shares: Fisher's exact test.

    A tally has the events by share and the total last, shape (..., shares + 1); `shares` are the
    largest that are not drift. The p-value is corrected for their number.
    """
    from scipy.stats import hypergeom

    events, total = tally[..., :-1], tally[..., -1:]
    usual = np.minimum(np.ceil(shares * rows), rows)
    cases = np.stack(np.broadcast_arrays(events, usual.astype(np.int64), total)).reshape(3, -1)
    # SciPy takes a tenth of a millisecond for each; small counts are often the same.
    (k, known, n), inverse = np.unique(cases, axis=1, return_inverse=True)
    p = hypergeom.sf(k - 1, rows + n, known + k, n)[inverse.ravel()].reshape(events.shape)
    return np.asarray(np.minimum(1.0, p.min(axis=-1) * len(shares)))


# Nights for which a budget of false alarms lasts. Then the bets start again with a new one.
YEAR = 365
# Money for the first night. A mismatch of training and production shows as soon as a model serves.
FIRST_NIGHT = 0.25
# Nights that are tested together, and the part of the budget that these tests of a year share.
BLOCKS = {7: 0.125, 28: 0.125}
SLOW, SINGLE = 0.25, 0.5


def night_money(night: int) -> float:
    """Return the share of a year's money that starts to bet on a night, counted from 0."""
    return FIRST_NIGHT if night == 0 else (1 - FIRST_NIGHT) / (YEAR - 1)


@dataclass
class Wealth:
    """The wealth of one signal's bets; arrays may hold many watches at once."""

    nights: int = 0  # nights of this year that were bet on
    # Anytime-valid, the smallest so far this year, shape (...).
    p_value: Annotated[Any, PlainSerializer(float)] = 1.0
    # Running wealth by alternative, shape (..., alternatives) as the others.
    log_wealth: Sums = field(default_factory=lambda: np.empty(0))
    # The largest sum of log e-values up to tonight, and its first night.
    rise: Sums = field(default_factory=lambda: np.empty(0))
    began: Annotated[NDArray[Any], _ARRAY, _PLAIN] = field(
        default_factory=lambda: np.empty(0, object)
    )
    recent: list[Tally] = field(default_factory=list)  # of the last nights

    def bet(self, log_e: Floats, tally: Counts, test: Callable[[Counts], Floats], day: str) -> None:
        """Take a night."""
        if self.nights == YEAR or self.log_wealth.shape != log_e.shape:
            # A new year, or another reference: what was bet on before is no more.
            self.nights, self.p_value = 0, 1.0
            self.log_wealth = np.full(log_e.shape, -np.inf)
            self.rise, self.began = np.zeros(log_e.shape), np.full(log_e.shape, day, object)
            self.recent = []
        money = night_money(self.nights)
        self.log_wealth = np.logaddexp(self.log_wealth, math.log(money)) + log_e
        self.nights += 1
        if self.recent and self.recent[-1].shape != tally.shape:
            self.recent = []
        self.recent = [*self.recent, tally][-max(BLOCKS) :]
        found = [self.p_value, np.exp(-self._log_total()) / SLOW, test(tally) / (SINGLE * money)]
        found += [
            test(np.sum(self.recent[-size:], axis=0)) * (YEAR // size) / share
            for size, share in BLOCKS.items()
            if self.nights % size == 0 and len(self.recent) >= size
        ]
        self.p_value = np.minimum.reduce(np.broadcast_arrays(*found))
        self.began = np.where(self.rise <= 0, day, self.began)
        self.rise = np.maximum(self.rise, 0) + log_e

    def _log_total(self) -> Floats:
        """Return the logarithm of all money, at least 0: what was bet, and what waits."""
        spent = FIRST_NIGHT + (self.nights - 1) * night_money(1)
        bet = np.logaddexp.reduce(self.log_wealth, axis=-1) - math.log(self.log_wealth.shape[-1])
        return np.maximum(0.0, np.logaddexp(bet, math.log(max(1 - spent, 1e-300))))

    @property
    def since(self) -> str | None:
        """The night on which the strongest alternative began to win, None before the first bet."""
        return str(self.began[int(np.argmax(self.rise))]) if len(self.began) else None
