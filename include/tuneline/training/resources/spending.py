"""The time, cost and memory of a training: limited while it runs, reported at its end.

A training that reaches its limit of hours or money stops, and its best adapter is kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from transformers import TrainerCallback

from tuneline.artifacts.training import Plan, Trip
from tuneline.config import PipelineConfig
from tuneline.evidence import Measurement, measure
from tuneline.run import Run
from tuneline.step_context import StepContext
from tuneline.store import NotThere
from tuneline.training.resources.estimate import (
    HOUR,
    compare,
    devices_of,
    duration,
    money,
    price_of,
)
from tuneline.training.resources.out_of_memory import MemoryNotes

# Interval at which the time spent is stored: a killed try loses no more than this.
NOTE_SECONDS = 30.0


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
    """Stops training before it passes `max_hours` or `max_cost`; `trip` is the limit reached."""

    def __init__(self, config: PipelineConfig, spent: Spent, log: Callable[[str], None]) -> None:
        self.trip: Trip | None = None
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
        seconds = self._spent.seconds + self._validation_seconds
        if self.trip is None and (trip := reached(self._config, seconds, state.global_step)):
            self.trip = trip
            self._log(f"{trip.sentence}: training stops, the best checkpoint is kept")
            # What was learned since the last validation pass may be the best.
            control.should_evaluate = control.should_save = True
        if self.trip is not None:
            control.should_training_stop = True


def reached(config: PipelineConfig, seconds: float, step: int) -> Trip | None:
    """Return the limit that a training has reached after some seconds, None if it has not."""
    limits, currency, hours = config.training, config.governance.currency, seconds / HOUR
    cost = hours * devices_of(config) * price_of(config)
    spent = f"at step {step} training has"
    if limits.max_hours is not None and hours >= limits.max_hours:
        allowed = f"training.max_hours allows {limits.max_hours:g} h"
        said = f"{spent} taken {duration(seconds)}, {allowed}"
        return Trip("max_hours", step, round(hours, 4), limits.max_hours, said)
    if limits.max_cost is not None and cost >= limits.max_cost:
        allowed = f"training.max_cost allows {money(limits.max_cost, currency)}"
        said = f"{spent} cost {money(cost, currency)}, {allowed}"
        return Trip("max_cost", step, round(cost, 4), limits.max_cost, said)
    return None


class Resources:
    """The time, cost and memory of a training; `limit` is the callback that stops it."""

    def __init__(self, ctx: StepContext, plan: Plan) -> None:
        self._spent, self._notes, self._plan = Spent(ctx.run), MemoryNotes(ctx.run), plan
        self.limit = StopOnLimit(ctx.config, self._spent, ctx.log)
        if plan.planned_micro_batch is not None:
            ctx.log(
                f"an earlier try ran out of memory: {plan.micro_batch} rows × "
                f"{plan.accumulation} accumulated instead of {plan.planned_micro_batch}"
            )

    def close(self, tokens: int) -> dict[str, Any]:
        """Return the resources that training took, for `run.json`, and delete its notes."""
        document = {
            "seconds_of_all_tries": round(self._spent.seconds, 1),
            "micro_batch": self._plan.micro_batch,
            "accumulation": self._plan.accumulation,
            "planned_micro_batch": self._plan.planned_micro_batch or self._plan.micro_batch,
            "out_of_memory": [asdict(failure) for failure in self._notes.failures()],
            "estimate": compare(self._plan.estimate, self._spent.seconds, tokens),
        }
        self._notes.clear()
        self._spent.clear()
        return document


def measured(document: Mapping[str, Any]) -> list[Measurement]:
    """Return the measurements of a document of `Resources.close`."""
    estimate = document["estimate"]
    return [
        measure("micro_batch", document["micro_batch"], "rows"),
        measure("accumulation", document["accumulation"], "micro-batches"),
        measure("out_of_memory", len(document["out_of_memory"]), "tries"),
        measure("seconds_of_all_tries", document["seconds_of_all_tries"], "s"),
        measure("actual_over_estimated_time", estimate["actual_over_estimated"], "ratio"),
        measure("device_hours", estimate["device_hours"], "h"),
        measure("cost", estimate["cost"], estimate["currency"]),
    ]


def memory_note(document: Mapping[str, Any]) -> str:
    """Return the part of the summary on memory, an empty text if all went as planned."""
    if not document["out_of_memory"]:
        return ""
    return (
        f"; ran out of memory with a micro-batch of {document['planned_micro_batch']}, went on "
        f"with {document['micro_batch']} × {document['accumulation']} accumulated"
    )
