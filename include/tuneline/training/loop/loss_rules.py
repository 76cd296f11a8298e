"""Rules that watch a loss curve: the same while training runs and when it is judged.

A running median and a floor in nats separate spikes and divergence from noise; only the task's rows
are watched, as rehearsal rows have other losses. Overfitting and plateaus are read from validation
passes, with patience by passes (Prechelt, "Early Stopping — But When?", 1998, criterion UP).
docs/training.md lists every rule with its limit.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, variance
from typing import Any

from tuneline.artifacts.training import Trip
from tuneline.config.training import LossRulesConfig

FLOOR_NATS = 0.5
SPIKE_WINDOW = 10  # logged steps whose median a spike is compared with
# Logged steps in the running median. If the loss of batches scatters by 20 % (standard deviation),
# one clean run of 400 steps in 400 trips; by 30 %, 2.5 % of runs. With a window of 5 it would be
# 8 % of runs. A longer window sees a divergence later.
DIVERGENCE_WINDOW = 7
OVERFIT_FLOOR_NATS = 0.01  # a rise of the validation loss by less changes no answer
# A change of the training loss by this many standard errors is no longer noise.
SURE_ERRORS = 2.0

Point = tuple[int, float]


@dataclass(frozen=True)
class Curve:
    """Losses by step, in order, in nats per token.

    `optimised` is that of all rows of a step, `train` that of the task's rows, where it has any.
    """

    optimised: tuple[Point, ...]
    train: tuple[Point, ...]
    validation: tuple[Point, ...]

    @classmethod
    def of(cls, history: Sequence[Mapping[str, Any]]) -> Curve:
        """Read the entries of `history.jsonl`."""

        def series(name: str) -> tuple[Point, ...]:
            return tuple((int(e["step"]), float(e[name])) for e in history if name in e)

        return cls(series("loss"), series("task_loss"), series("eval_loss"))

    @property
    def first(self) -> float:
        """The validation loss before training; NaN without one."""
        return self.validation[0][1] if self.validation else math.nan

    @property
    def best(self) -> Point | None:
        """Step and value of the lowest validation loss, the earliest of equals; None for none."""
        finite = [point for point in self.validation if math.isfinite(point[1])]
        return min(finite, key=lambda point: point[1]) if finite else None


@dataclass
class SpikeRule:
    """Finds the steps whose loss is `factor` times the median of the `SPIKE_WINDOW` steps before.

    `found` has step, loss and limit; `streak` the spikes in a row so far, `longest` the most.
    """

    factor: float
    found: list[tuple[int, float, float]] = field(default_factory=list)
    streak: int = 0
    longest: int = 0
    _before: deque[float] = field(default_factory=lambda: deque(maxlen=SPIKE_WINDOW))

    def push(self, step: int, loss: float) -> None:
        """Take in the next step."""
        before = [x for x in self._before if math.isfinite(x)]
        self._before.append(loss)
        middle = median(before) if len(before) >= 3 else math.inf
        limit = max(self.factor * middle, middle + FLOOR_NATS)
        spiked = limit < loss < math.inf
        if spiked:
            self.found.append((step, loss, limit))
        self.streak = self.streak + 1 if spiked else 0
        self.longest = max(self.longest, self.streak)


@dataclass
class ClimbRule:
    """Measures the climb of the training loss from its lowest running median.

    It may take back `share` of the progress until then, or of the lowest loss, whichever is more;
    at least `FLOOR_NATS`. `before` is the validation loss before the first step, so that an easy
    first batch is not taken for a low point.
    """

    share: float
    before: float = -math.inf
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=DIVERGENCE_WINDOW))
    _count: int = 0
    _start: float = math.nan
    _lowest: float = math.inf
    _worst: tuple[float, float] = (0.0, FLOOR_NATS)

    def push(self, loss: float) -> None:
        """Take in the next step; a loss that is not a number belongs to another rule."""
        if not math.isfinite(loss):
            return
        self._recent.append(loss)
        self._count += 1
        # The median starts with the first step alone: a learning rate that is far too high ruins
        # the second one already.
        if self._count == 2:
            return
        middle = median(self._recent)
        if self._count == 1:
            self._start = middle = max(middle, self.before)
        self._lowest = min(self._lowest, middle)
        progress, lowest = self._start - self._lowest, self._lowest
        limit = max(FLOOR_NATS, self.share * progress, self.share * lowest)
        if middle - lowest - limit > self._worst[0] - self._worst[1]:
            self._worst = (middle - lowest, limit)

    @property
    def started(self) -> bool:
        """True if it has seen a step."""
        return self._count > 0

    @property
    def worst(self) -> tuple[float, float]:
        """The largest climb and its limit, in nats; no climb before the window is full."""
        return self._worst if self._count >= DIVERGENCE_WINDOW else (0.0, FLOOR_NATS)


def spikes(curve: Curve, factor: float) -> SpikeRule:
    """Find the spikes of a whole curve."""
    rule = SpikeRule(factor)
    for step, loss in curve.train:
        rule.push(step, loss)
    return rule


def climb(curve: Curve, share: float) -> tuple[float, float]:
    """Return the largest climb of a whole curve and its limit, in nats; see `ClimbRule`."""
    rule = ClimbRule(share)
    if curve.train and curve.validation and curve.validation[0][0] < curve.train[0][0]:
        rule.before = _number(curve.validation[0][1])
    for _, loss in curve.train:
        rule.push(loss)
    return rule.worst


def _number(loss: float) -> float:
    return loss if math.isfinite(loss) else -math.inf


def not_finite(curve: Curve) -> list[int]:
    """Return the steps whose training or validation loss is not a number."""
    return sorted(s for s, x in (*curve.optimised, *curve.validation) if not math.isfinite(x))


def rise_of_validation(curve: Curve) -> float:
    """Return last over best validation loss; 1 if they differ too little or can't be compared."""
    if curve.best is None or len(curve.validation) < 2 or curve.best[1] <= 0:
        return 1.0
    last, best = curve.validation[-1][1], curve.best[1]
    return last / best if last - best >= OVERFIT_FLOOR_NATS else 1.0


def change_since_best(curve: Curve) -> tuple[float, float]:
    """Return the mean loss before the last pass minus that before the best, and its error, nats.

    The error is infinite where there are too few steps.
    """
    if curve.best is None or not curve.validation:
        return 0.0, math.inf
    passes = [step for step, _ in curve.validation]
    then, now = passes.index(curve.best[0]), len(passes) - 1

    def stretch(number: int) -> list[float]:
        start = passes[number - 1] if number else -1
        losses = [x for s, x in curve.train if start < s <= passes[number] and math.isfinite(x)]
        # Nothing was trained before the first pass, so the first steps are taken.
        return losses or [x for _, x in curve.train[:DIVERGENCE_WINDOW] if math.isfinite(x)]

    before, after = stretch(then), stretch(now)
    if then == now or min(len(before), len(after)) < 2:
        return 0.0, math.inf
    error = math.sqrt(variance(before) / len(before) + variance(after) / len(after))
    return fmean(after) - fmean(before), error


def passes_without_gain(curve: Curve, least: float) -> int:
    """Count the validation passes since one was better by `least` nats than the best before it."""
    best, since = math.inf, 0
    for _, loss in curve.validation:
        if loss < best - least or best == math.inf:
            best, since = min(best, loss), 0
        else:
            since += 1
    return since


class Watch:
    """Follows a training as it logs, at a constant cost per step."""

    def __init__(self, limits: LossRulesConfig) -> None:
        self.limits = limits
        self._seen = 0
        self._history: list[Mapping[str, Any]] = []
        self._spikes = SpikeRule(limits.spike_factor)
        self._climb = ClimbRule(limits.divergence_share)

    def follow(self, log: Sequence[Mapping[str, Any]]) -> Trip | None:
        """Take in the new entries of a growing log, which is given whole; return the first trip."""
        new, self._seen = log[self._seen :], len(log)
        return next((trip for entry in new if (trip := self._take(entry))), None)

    def _take(self, entry: Mapping[str, Any]) -> Trip | None:
        self._history.append(entry)
        for name in ("loss", "eval_loss"):
            if name in entry and not math.isfinite(float(entry[name])):
                step = int(entry["step"])
                return Trip("nan", step, math.nan, 0, f"the loss at step {step} is not a number")
        if "task_loss" in entry:
            return self._trained(int(entry["step"]), float(entry["task_loss"]))
        if "eval_loss" in entry:
            if not self._climb.started:
                self._climb.before = _number(float(entry["eval_loss"]))
            return validation_trip(Curve.of(self._history), self.limits)
        return None

    def _trained(self, step: int, loss: float) -> Trip | None:
        self._spikes.push(step, loss)
        self._climb.push(loss)
        climbed, limit = self._climb.worst
        if climbed > limit:
            said = (
                f"by step {step} the training loss has climbed {climbed:.2f} nats from its "
                f"lowest running median, more than the {limit:.2f} allowed"
            )
            return Trip("divergence", step, climbed, limit, said)
        if self._spikes.streak < self.limits.spike_streak:
            return None
        _, value, limit = self._spikes.found[-1]
        said = (
            f"{self._spikes.streak} steps in a row spiked, the last at step {step} to {value:.2f} "
            f"nats (limit {limit:.2f})"
        )
        return Trip("spike", step, value, limit, said)


def validation_trip(curve: Curve, limits: LossRulesConfig) -> Trip | None:
    """Look for overfitting, divergence or a plateau in the validation passes."""
    if curve.best is None:
        return None
    step, last = curve.validation[-1]
    ratio = rise_of_validation(curve)
    change, error = change_since_best(curve)
    if ratio > limits.overfit_ratio:
        risen = (
            f"at step {step} the validation loss is {ratio:.2f} times its best, more than the "
            f"{limits.overfit_ratio:g} allowed"
        )
        if training_rose(change, error):
            said = f"{risen}, and the training loss has risen by {change:.2f} nats as well"
            return Trip("divergence", step, ratio, limits.overfit_ratio, said)
        said = f"{risen}, while the training loss has not risen"
        return Trip("overfit", step, ratio, limits.overfit_ratio, said)
    patience = limits.plateau_evaluations
    since = passes_without_gain(curve, limits.plateau_nats)
    if patience is None or since < patience:
        return None
    still = f"the validation loss has not fallen in {since} passes up to step {step}"
    rose = last - curve.best[1]
    if rose >= OVERFIT_FLOOR_NATS and change < -SURE_ERRORS * error:
        said = f"{still}; it rose by {rose:.2f} nats while the training loss fell by {-change:.2f}"
        return Trip("overfit", step, since, patience, said)
    return Trip("plateau", step, since, patience, still)


def training_rose(change: float, error: float) -> bool:
    """Return True if a change of the training loss is a rise that noise does not explain."""
    return change > max(OVERFIT_FLOOR_NATS, SURE_ERRORS * error)
