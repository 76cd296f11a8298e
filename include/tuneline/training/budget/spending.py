"""Stop a training that reaches its limit of hours or money; its best adapter is kept."""

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

# Interval at which the time spent is stored: a killed try loses no more than this.
NOTE_SECONDS = 30.0


@dataclass(frozen=True)
class LimitReached:
    """A limit that training reached, with the fields of a loss rule's `Trip`.

    Attributes:
        rule: `max_hours` or `max_cost`.
        step: the optimiser step.
        value: hours or money spent.
        limit: hours or money allowed.
        sentence: the reason for a person.
    """

    rule: str
    step: int
    value: float
    limit: float
    sentence: str


class Spent:
    """The seconds that all tries of a training have taken, stored in the run."""

    def __init__(self, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin a try; the time of earlier tries counts."""
        self._store, self._folder = run.store, run.key("work", "spending")
        self._clock, self._started, self._noted = clock, clock(), 0.0
        try:
            found = json.loads(self._store.get_bytes(f"{self._folder}/spent.json"))
            self._before = float(found["seconds"])
        except NotThere:
            self._before = 0.0

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + self._clock() - self._started

    def note(self) -> None:
        """Store the time if an interval has passed."""
        seconds = self.seconds
        if seconds - self._noted >= NOTE_SECONDS:
            self._noted = seconds
            document = json.dumps({"seconds": round(seconds, 1)}).encode()
            self._store.put_bytes(f"{self._folder}/spent.json", document)

    def clear(self) -> None:
        """Delete the stored time when training is done."""
        self._store.delete_prefix(self._folder)


class StopOnLimit(TrainerCallback):
    """Stops training before it passes `max_hours` or `max_cost`.

    Attributes:
        trip: the limit that was reached, None before.
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
    """Return the limit that a training has reached after some seconds, None if it has not."""
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
