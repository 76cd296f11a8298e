"""Watch the time, cost and memory of one training, and report them at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tuneline.artifacts.training import Plan
from tuneline.evidence import Measurement, measure
from tuneline.run import StepContext
from tuneline.training.budget.estimate import compare
from tuneline.training.budget.spending import Spent, StopOnLimit
from tuneline.training.memory.out_of_memory import MemoryNotes


class Resources:
    """The time, cost and memory of a training.

    Attributes:
        limit: the callback that stops training at `max_hours` or `max_cost`.
    """

    def __init__(self, ctx: StepContext, plan: Plan) -> None:
        self._spent, self._notes, self._plan = Spent(ctx.run), MemoryNotes(ctx.run), plan
        self.limit = StopOnLimit(ctx.config, self._spent, ctx.log)
        if plan.planned_micro_batch is not None:
            ctx.log(
                f"an earlier try ran out of memory: {plan.micro_batch} rows × "
                f"{plan.accumulation} accumulated instead of {plan.planned_micro_batch}"
            )

    def close(self, tokens: int) -> dict[str, Any]:
        """Return the resources that training took, for `run.json`, and delete its notes.

        Args:
            tokens: real tokens of all steps.
        """
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
