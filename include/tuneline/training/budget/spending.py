"""A training that reaches its limit of hours or money stops and keeps its best adapter."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from tuneline.config import PipelineConfig
from tuneline.run import Run
from tuneline.store import NotThere
from tuneline.training.budget.estimate import HOUR, devices_of, duration, money, price_of

# How often the time spent is noted: what a killed try loses of it at the most.
NOTE_SECONDS = 30.0


@dataclass(frozen=True)
class LimitReached:
    """A limit that training reached; the form of a loss rule's `Trip`.

    Attributes:
        rule: `max_hours` or `max_cost`.
        step: optimiser step at which it did.
        value: what was spent.
        limit: what may be.
        sentence: for a person.
    """

    rule: str
    step: int
    value: float
    limit: float
    sentence: str


class Spent:
    """Seconds that a training has taken, all of its tries together, noted in the run."""

    def __init__(self, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin a try; what earlier ones have taken counts."""
        self._store, self._folder = run.store, run.key("work", "spending")
        self._clock, self._started, self._noted = clock, clock(), 0.0
        try:
            found = json.loads(self._store.get_bytes(f"{self._folder}/spent.json"))
            self._before = float(found["seconds"])
        except NotThere:
            self._before = 0.0

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + self._clock() - self._started

    def note(self) -> None:
        """Note it, if that is due."""
        seconds = self.seconds
        if seconds - self._noted >= NOTE_SECONDS:
            self._noted = seconds
            document = json.dumps({"seconds": round(seconds, 1)}).encode()
            self._store.put_bytes(f"{self._folder}/spent.json", document)

    def clear(self) -> None:
        """Forget it: the training is done."""
        self._store.delete_prefix(self._folder)


class StopOnLimit(TrainerCallback):
    """Stops training before it passes `max_hours` or `max_cost`.

    Attributes:
        trip: the limit that was reached.
    """

    def __init__(self, config: PipelineConfig, spent: Spent, log: Callable[[str], None]) -> None:
        self.trip: LimitReached | None = None
        self._config, self._spent, self._log = config, spent, log
        # The last validation pass must fit in as well.
        self._validation_seconds = 0.0

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        """See `transformers.TrainerCallback`."""
        taken = (metrics or {}).get("eval_seconds", 0.0)
        self._validation_seconds = max(self._validation_seconds, float(taken))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        self._spent.note()
        if self.trip is None:
            self.trip = reached(
                self._config, self._spent.seconds + self._validation_seconds, state.global_step
            )
            if self.trip is not None:
                self._log(f"{self.trip.sentence}: training stops, the best checkpoint is kept")
                # What was learned since the last validation pass may be the best.
                control.should_evaluate = True
                control.should_save = True
        if self.trip is not None:
            control.should_training_stop = True


def reached(config: PipelineConfig, seconds: float, step: int) -> LimitReached | None:
    """The limit that a training of these seconds has reached, if it has."""
    limits, hours = config.training, seconds / HOUR
    if limits.max_hours is not None and hours >= limits.max_hours:
        return LimitReached(
            "max_hours",
            step,
            round(hours, 4),
            limits.max_hours,
            f"at step {step} training has taken {duration(seconds)}, training.max_hours allows "
            f"{limits.max_hours:g} h",
        )
    cost = hours * devices_of(config) * price_of(config)
    currency = config.governance.currency
    if limits.max_cost is not None and cost >= limits.max_cost:
        return LimitReached(
            "max_cost",
            step,
            round(cost, 4),
            limits.max_cost,
            f"at step {step} training has cost {money(cost, currency)}, training.max_cost allows "
            f"{money(limits.max_cost, currency)}",
        )
    return None
