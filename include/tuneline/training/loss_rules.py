"""Rules that watch a loss curve: the same while training runs and when it is judged.

Spikes and divergence are told from noise by a running median and by a floor in
nats, since a ratio of two small losses means nothing. Half a nat is a factor
of 1.65 in a token's probability. What is watched is the loss of the task's rows:
rehearsal rows lie elsewhere, and how many of them a step holds would look like
spikes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

FLOOR_NATS = 0.5
SPIKE_WINDOW = 10  # logged steps whose median a spike is measured by
SPIKE_STREAK = 3  # spikes in a row that stop training; a lone one is only counted
DIVERGENCE_WINDOW = 5  # logged steps in the running median
LOST_SHARE = 0.5  # share of the progress made, or of the lowest loss, that may be lost again
OVERFIT_FLOOR_NATS = 0.01  # a rise of the validation loss by less changes no answer


@dataclass(frozen=True)
class Thresholds:
    """Limits from the configuration.

    Attributes:
        spike_factor: training loss over its running median that counts as a spike.
        overfit_ratio: last over best validation loss that counts as overfitting.
    """

    spike_factor: float
    overfit_ratio: float


@dataclass(frozen=True)
class Trip:
    """A rule that tripped.

    Attributes:
        rule: nan, spike, divergence or overfit.
        step: optimiser step at which it did.
        value: what was measured there.
        limit: what it was held against.
        sentence: for a person.
    """

    rule: str
    step: int
    value: float
    limit: float
    sentence: str


@dataclass(frozen=True)
class Curve:
    """Losses by step, in order, in nats per token.

    Attributes:
        optimised: what every step minimised, over all of its rows.
        train: of the task's rows alone; steps without one are left out.
        validation: of every validation pass.
    """

    optimised: tuple[tuple[int, float], ...]
    train: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, history: Sequence[Mapping[str, Any]]) -> Curve:
        """Read the entries of `history.jsonl`."""

        def series(name: str) -> tuple[tuple[int, float], ...]:
            return tuple((int(e["step"]), float(e[name])) for e in history if name in e)

        return cls(series("loss"), series("task_loss"), series("eval_loss"))

    @property
    def losses(self) -> list[float]:
        """Values of the watched training loss alone."""
        return [loss for _, loss in self.train]

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the lowest validation loss, the earliest of equals."""
        finite = [point for point in self.validation if math.isfinite(point[1])]
        return min(finite, key=lambda point: point[1]) if finite else None


def not_finite(curve: Curve) -> list[int]:
    """Steps whose training or validation loss is not a number."""
    return sorted(s for s, x in (*curve.optimised, *curve.validation) if not math.isfinite(x))


def spikes(curve: Curve, factor: float) -> list[tuple[int, float, float]]:
    """Steps whose training loss leaves the running median behind: (step, loss, limit)."""
    found = []
    losses = curve.losses
    for index, (step, loss) in enumerate(curve.train):
        before = [x for x in losses[max(0, index - SPIKE_WINDOW) : index] if math.isfinite(x)]
        if len(before) < 3 or not math.isfinite(loss):
            continue
        middle = median(before)
        limit = max(factor * middle, middle + FLOOR_NATS)
        if loss > limit:
            found.append((step, loss, limit))
    return found


def longest_streak(curve: Curve, found: Sequence[tuple[int, float, float]]) -> int:
    """Length of the longest run of spikes without a calm step between them."""
    spiked = {step for step, _, _ in found}
    best = run = 0
    for step, _ in curve.train:
        run = run + 1 if step in spiked else 0
        best = max(best, run)
    return best


def rise(curve: Curve) -> tuple[float, float]:
    """How far the training loss has climbed from its lowest running median, and the limit.

    Returns:
        The largest climb seen so far at any step, in nats, and what it may be: half of the
        progress made until then or half of the lowest loss, whichever is more, at least
        `FLOOR_NATS`. (0, `FLOOR_NATS`) for a short curve.
    """
    losses = [x for x in curve.losses if math.isfinite(x)]
    worst = (0.0, FLOOR_NATS)
    if len(losses) < DIVERGENCE_WINDOW:
        return worst
    # The first step stands alone: a rate that is far too high ruins the second already.
    middles = losses[:1] + [
        median(losses[max(0, i - DIVERGENCE_WINDOW + 1) : i + 1]) for i in range(2, len(losses))
    ]
    lowest = start = middles[0]
    for middle in middles:
        lowest = min(lowest, middle)
        limit = max(FLOOR_NATS, LOST_SHARE * (start - lowest), LOST_SHARE * lowest)
        if middle - lowest - limit > worst[0] - worst[1]:
            worst = (middle - lowest, limit)
    return worst


def overfit(curve: Curve) -> float:
    """Last over best validation loss; 1 while there is nothing to compare or too little."""
    if curve.best is None or len(curve.validation) < 2 or curve.best[1] <= 0:
        return 1.0
    last, best = curve.validation[-1][1], curve.best[1]
    return last / best if last - best >= OVERFIT_FLOOR_NATS else 1.0


def first_trip(curve: Curve, limits: Thresholds) -> Trip | None:
    """The rule that says training must stop, if one does.

    Args:
        curve: so far.
        limits: from the configuration.
    """
    step = max((s for s, _ in (*curve.optimised, *curve.validation)), default=0)
    bad = not_finite(curve)
    if bad:
        return Trip("nan", bad[0], math.nan, 0, f"the loss at step {bad[0]} is not a number")
    climbed, limit = rise(curve)
    if climbed > limit:
        return Trip(
            "divergence",
            step,
            climbed,
            limit,
            f"by step {step} the training loss has climbed {climbed:.2f} nats from its lowest "
            f"running median, more than the {limit:.2f} allowed",
        )
    found = spikes(curve, limits.spike_factor)
    streak = longest_streak(curve, found)
    if streak >= SPIKE_STREAK:
        last = found[-1]
        return Trip(
            "spike",
            last[0],
            last[1],
            last[2],
            f"{streak} steps in a row spiked, the last at step {last[0]} to {last[1]:.2f} nats "
            f"(limit {last[2]:.2f})",
        )
    ratio = overfit(curve)
    if ratio > limits.overfit_ratio:
        return Trip(
            "overfit",
            step,
            ratio,
            limits.overfit_ratio,
            f"at step {step} the validation loss is {ratio:.2f} times its best, more than the "
            f"{limits.overfit_ratio:g} allowed",
        )
    return None
