"""Continue a training that ran out of memory with a smaller micro-batch.

The step notes a failed allocation in the run, the task that watches the pod a kill by the kernel.
The next try takes the next smaller divisor of the effective batch: every optimiser step sees the
same rows, and checkpoints stay valid.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from tuneline.artifacts.training import Plan
from tuneline.catalogue import Size
from tuneline.errors import RetryableError, UserError, first_line
from tuneline.machine.memory import is_out_of_memory
from tuneline.run import Run
from tuneline.store import NotThere

GIB = 1 << 30
# Steps whose memory follows from the micro-batch.
STEPS = ("gradient_accumulation", "train")
# What else helps where no smaller micro-batch is left.
ADVICE = (
    "set training.gradient_checkpointing: true, lower data.max_tokens, or give training "
    "more memory (pods: {sizes: {train: {memory: …}}}; on a GPU: a larger one, or training.qlora: "
    "true)"
)


@dataclass(frozen=True)
class Failure:
    """One event of running out of memory; no pod if the step noticed by itself."""

    step: str
    micro_batch: int
    how: str
    pod: str = ""


class MemoryNotes:
    """The notes in a run about micro-batches that did not fit."""

    def __init__(self, run: Run) -> None:
        self._store, self._key = run.store, run.key("work", "memory", "notes.json")

    def trying(self, step: str, micro_batch: int) -> None:
        """Note the micro-batch that a step is about to use, since a killed process can't."""
        self._write({**self._read(), "trying": {"step": step, "micro_batch": micro_batch}})

    def tried(self, step: str) -> int | None:
        """Return the micro-batch that a step used last, None if it noted none."""
        found = self._read()["trying"]
        return int(found["micro_batch"]) if found and found["step"] == step else None

    def add(self, failure: Failure) -> None:
        """Note a failure, once for each pod."""
        noted = self.failures()
        if failure not in noted:
            document = {**self._read(), "failures": [asdict(f) for f in (*noted, failure)]}
            self._write(document)

    def failures(self) -> list[Failure]:
        """Return all failures so far, in order."""
        return [Failure(**entry) for entry in self._read()["failures"]]

    def clear(self) -> None:
        """Delete all notes when training is done."""
        self._store.delete_prefix(self._key.rsplit("/", 1)[0])

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._store.get_bytes(self._key))
        except NotThere:
            return {"trying": None, "failures": []}
        return found

    def _write(self, document: Mapping[str, Any]) -> None:
        self._store.put_bytes(self._key, json.dumps(document).encode())


def micro_batches(effective_batch: int, world_size: int) -> list[int]:
    """Return the micro-batches that divide the effective batch exactly, largest first."""
    share = effective_batch // world_size
    if share * world_size != effective_batch:
        return []
    return [size for size in range(share, 0, -1) if share % size == 0]


def allowed(sizes: list[int], failures: list[Failure], step: str) -> list[int]:
    """Return the micro-batches below all that ran out of memory in a step."""
    least = min((f.micro_batch for f in failures if f.step == step), default=None)
    return [size for size in sizes if least is None or size < least]


def fitting(plan: Plan, failures: list[Failure]) -> Plan:
    """Adapt a plan to the failures of earlier tries: a smaller micro-batch, a larger accumulation.

    UserError if there is none smaller; `planned_micro_batch` is that of the original plan.
    """
    planned = plan.micro_batch
    sizes = [s for s in micro_batches(plan.effective_batch, plan.world_size) if s <= planned]
    left = allowed(sizes, failures, "train")
    if left[:1] == [planned]:
        return plan
    if not left:
        raise UserError(f"training runs out of memory even with a micro-batch of 1; {ADVICE}")
    changed = {
        "micro_batch": left[0],
        "accumulation": plan.effective_batch // (left[0] * plan.world_size),
        "planned_micro_batch": planned,
    }
    return plan.model_copy(update=changed)


@contextmanager
def noticed(run: Run, step: str, plan: Plan) -> Iterator[None]:
    """Run a block that uses a plan's micro-batch; turn running out of memory into a sentence.

    RetryableError if the next try takes a smaller one, UserError if there is none.
    """
    notes, micro_batch = MemoryNotes(run), plan.micro_batch
    notes.trying(step, micro_batch)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = first_line(error)
        notes.add(Failure(step, micro_batch, said))
        retry, sentence = _sentence(step, micro_batch, plan.effective_batch, plan.world_size)
        raise (RetryableError if retry else UserError)(sentence) from error


def after_kill(run_uri: str, step: str, size: Size, *, limit: str, pod: str) -> tuple[bool, str]:
    """Note that a pod was killed for its memory; True if a retry can help, and a sentence."""
    over = f", the pod's limit of {limit} was reached"
    if step in STEPS:
        run = Run.open(run_uri)
        notes = MemoryNotes(run)
        micro_batch = notes.tried(step)
        if micro_batch is not None:
            notes.add(Failure(step, micro_batch, "OOMKilled", pod))
            effective_batch = run.config.training.effective_batch
            return _sentence(step, micro_batch, effective_batch, run.config.world_size, over)
    return True, (
        f"{step} ran out of memory{over}; the next try starts over, and if it ends the same way "
        f"give it more memory (pods: {{sizes: {{{size}: {{memory: …}}}}}})"
    )


def _sentence(
    step: str, micro_batch: int, effective_batch: int, world_size: int, over: str = ""
) -> tuple[bool, str]:
    sizes = micro_batches(effective_batch, world_size)
    smaller = next((size for size in sizes if size < micro_batch), None)
    begin = f"{step} ran out of memory with a micro-batch of {micro_batch}{over}"
    if smaller is None:
        return False, f"{begin}; there is no smaller one: {ADVICE}"
    accumulation = effective_batch // (smaller * world_size)
    return True, (
        f"{begin}; the next try takes {smaller} rows × {accumulation} accumulated "
        f"(to start there: training.micro_batch: {smaller})"
    )
