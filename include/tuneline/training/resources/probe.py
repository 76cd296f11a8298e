"""Measure the memory and the speed of a micro-batch in a separate process, whose peak is clean.

    python -m tuneline.training.resources.probe SPEC.json REPORT.json

The real model takes single steps on growing micro-batches of the longest rows. Weights, adapter and
optimiser take the same memory whatever the micro-batch; what a step adds grows with its tokens. So
the line through the last two peaks predicts the next one, of at most twice the rows, which is tried
only when its prediction fits. With the one that is taken, the real trainer makes steps that
represent the run's and a validation pass; last, accumulated gradients are compared with those of
one large batch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from tuneline.artifacts.training import LoraSettings, Packing
from tuneline.catalogue import Size
from tuneline.config import PipelineConfig, TrainingConfig
from tuneline.data.rendering.renderer import Renderer
from tuneline.errors import first_line
from tuneline.machine.memory import CGROUP, cgroup_free, is_out_of_memory, peak_memory, restart_peak
from tuneline.machine.quantity import quantity
from tuneline.models import load_tokenizer
from tuneline.run import Run
from tuneline.training.loop.extra_rows import ANSWER_TOKENS, plant, prompts
from tuneline.training.loop.model import Precision, choose_precision, device_of, load_torch
from tuneline.training.loop.rows import (
    EncodedRow,
    as_batch,
    batch_shape,
    encode_split,
    evaluation_steps,
    pad_token,
    run_order,
    tail,
    total_steps,
)
from tuneline.training.resources.checks import AccumulationCheck, check_accumulation, choose_packing
from tuneline.training.resources.estimate import Speed, Work, spread_evenly
from tuneline.training.resources.out_of_memory import GIB, MemoryNotes

# Micro-batches that are timed, after the first, which is slow: its memory is new.
TIMED = 5
# Shares of the longest row from which the peak of a whole one is predicted.
PARTS = (0.25, 0.5)
# Share of the free memory; the rest is for the caches of the kernel and for other processes.
FREE_SHARE = 0.6


class ProbeSpec(BaseModel):
    """What the process needs besides the configuration of the run."""

    run: str
    base: Path
    dataset: Path
    lora: LoraSettings
    threads: int
    scratch: Path
    sizes: list[int]


@dataclass(frozen=True)
class Peak:
    """A measured peak: tokens that the model saw at once, and bytes."""

    tokens: int
    memory: int


class PredictedPeak(BaseModel):
    """A predicted peak, bytes, split by what takes the memory."""

    parts: dict[str, int]
    total: int


class TriedBatch(BaseModel):
    """A micro-batch that was predicted not to fit, or ran out of memory, and the error."""

    micro_batch: int
    predicted: PredictedPeak | None = None
    out_of_memory: str | None = None


class MeasuredBatch(TriedBatch):
    """A micro-batch that was predicted, and then measured; memory in bytes.

    Attributes:
        tokens: tokens that the model saw at once.
        peaks: peaks on the way there.
        measured_step: peak of training steps; `measured` that with a validation pass.
        batches: see `rows.batch_shape`.
    """

    predicted: PredictedPeak
    tokens: int
    longest_row: int
    peaks: list[Peak]
    measured_step: int
    measured: int
    work: Work
    batches: dict[str, float]
    speed: Speed
    accumulation: AccumulationCheck


class ProbeReport(BaseModel):
    """What the process found; the limit of memory is in bytes.

    `tried` has those predicted not to fit, largest first, then the one that was measured.
    """

    device: str
    precision: Precision
    limit: int
    limit_source: str
    packing: Packing = Packing()
    tried: list[MeasuredBatch | TriedBatch] = []

    @property
    def last(self) -> MeasuredBatch | TriedBatch:
        """The micro-batch that was tried last."""
        return self.tried[-1]

    def write(self, path: Path) -> None:
        """Write the report; what is not a number stays so."""
        path.write_text(json.dumps(self.model_dump(mode="json", exclude_none=True)))

    @classmethod
    def read(cls, path: Path) -> ProbeReport:
        """Read what `write` wrote."""
        return cls.model_validate(json.loads(path.read_text()))


@dataclass(frozen=True)
class TrainingSetup:
    """The model and settings that a micro-batch is tried with."""

    base: Path
    lora: LoraSettings
    config: TrainingConfig
    precision: Precision
    device: str
    scratch: Path
    packing: Packing = field(default_factory=Packing)

    def model(self) -> Any:
        """Load the real model with its adapter."""
        from tuneline.training.loop.model import attach_lora, load_base

        qlora = self.config.qlora
        base = load_base(self.base, self.device, qlora=qlora, precision=self.precision)
        return attach_lora(base, self.lora)

    def trainer(self, model: Any, tokenizer: Any, batches: Sequence[Sequence[EncodedRow]]) -> Any:
        """Make a trainer whose steps are the given micro-batches."""
        from tuneline.training.loop.trainer import LabelledTokenTrainer, TrainerSettings

        return LabelledTokenTrainer(
            model=model,
            tokenizer=tokenizer,
            settings=TrainerSettings(
                output=self.scratch,
                micro_batch=len(batches[0]),
                accumulation=1,
                steps=len(batches),
                precision=self.precision,
                device=self.device,
                packing=self.packing,
            ),
            config=self.config,
            rows=[row for batch in batches for row in batch],
            validation=[],
        )


def memory_limit(
    torch: Any, configured_gib: float | None, pod_memory: str, root: Path = CGROUP
) -> tuple[int, str]:
    """Return the limit of training in bytes, and its source.

    Without `training.memory_limit_gib` it is a share of what is free; the pod's limit is host
    memory, so it applies on a CPU only.
    """
    if configured_gib is not None:
        return int(configured_gib * GIB), "training.memory_limit_gib"
    if torch.cuda.is_available():
        bounds = [(int(torch.cuda.mem_get_info()[0]), "of the GPU's free memory")]
    else:
        import psutil

        bounds = [
            (int(psutil.virtual_memory().available), "of the machine's free memory"),
            (quantity(pod_memory), "of pods.memory"),
        ]
        container = cgroup_free(root)
        if container is not None:
            bounds.append((container, "of the container's free memory"))
    free, bound = min(bounds)
    return int(FREE_SHARE * free), f"{FREE_SHARE:.0%} {bound}"


def longest_rows(rows: Sequence[EncodedRow], count: int) -> list[EncodedRow]:
    """Return the longest rows; a dataset with fewer repeats its longest."""
    ordered = sorted(rows, key=lambda r: (-len(r.ids), r.row_id))
    return (ordered + [ordered[0]] * count)[:count]


def tokens_at_once(model: Any, rows: Sequence[EncodedRow], *, packed: bool) -> int:
    """Count the tokens that the model sees for a micro-batch.

    Padded to the longest row, or end to end: packed, or by `cpu_kernels`, with shared prefixes
    once.
    """
    if packed:
        return sum(len(row.ids) for row in rows)
    import torch

    from tuneline.training.loop.cpu_kernels import lay_out, shares_prefixes

    batch = as_batch(torch, rows, 0)
    if shares_prefixes(model.get_base_model()):
        return int(lay_out(batch["input_ids"], batch["attention_mask"]).ids.numel())
    return int(batch["input_ids"].numel())


class Rung(NamedTuple):
    """A micro-batch that was predicted and then measured, bytes."""

    rows: int
    predicted: PredictedPeak
    memory: int


@dataclass
class Climb:
    """Measures larger and larger micro-batches until the next one would not fit in `limit` bytes.

    Attributes:
        tokens_of: gives the tokens that the model sees for a number of rows.
        measure: takes a step on a number of rows and gives the peak so far, bytes.
        peaks: peaks measured so far; at least two, of less than one row.
        runtime: memory before the model was loaded, bytes.
    """

    limit: int
    tokens_of: Callable[[int], int]
    measure: Callable[[int], int]
    peaks: list[Peak]
    runtime: int = 0

    def predict(self, rows: int) -> PredictedPeak:
        """Predict the peak of a micro-batch from the last two that were measured."""
        before, last = self.peaks[-2:]
        # Peaks never fall: a process does not give back what its allocator holds.
        slope = (last.memory - before.memory) / max(1, last.tokens - before.tokens)
        fixed = round(last.memory - slope * last.tokens)
        growing = round(slope * self.tokens_of(rows))
        parts = {"runtime": self.runtime, "model": fixed - self.runtime, "micro_batch": growing}
        return PredictedPeak(parts=parts, total=fixed + growing)

    def up(self, sizes: Sequence[int]) -> Rung:
        """Climb to the largest micro-batch that fits; sizes far apart are bridged by powers of two.

        Returns the last of `sizes` that was measured: within the limit, above it where its
        prediction was too low, and the smallest one where none is predicted to fit.
        """
        largest = max(sizes)
        bridges = (1 << power for power in range(largest.bit_length()))
        rungs = sorted({*sizes, *(rows for rows in bridges if rows < largest)})
        at, taken = 0, None
        while ahead := [rows for rows in rungs if rows > at]:
            near = [rows for rows in ahead if rows <= 2 * at] or ahead[:1]
            fitting = [rows for rows in near if self.predict(rows).total <= self.limit]
            if not fitting and taken is not None:
                break
            wanted = [rows for rows in fitting if rows in sizes] or fitting or [min(sizes)]
            at = max(wanted)
            predicted = self.predict(at)
            self.peaks.append(Peak(self.tokens_of(at), self.measure(at)))
            if at in sizes:
                taken = Rung(at, predicted, self.peaks[-1].memory)
                if taken.memory > self.limit:
                    break
        assert taken is not None
        return taken


def plan_work(
    rows: Sequence[EncodedRow],
    validation: Sequence[EncodedRow],
    tokenizer: Any,
    config: PipelineConfig,
    dataset: Path,
    *,
    micro_batch: int,
    end_to_end: bool,
    samples: int,
) -> tuple[Work, list[list[EncodedRow]], dict[str, float]]:
    """Count the work of a run and draw some of its micro-batches, evenly over their sizes.

    Rows are those without rehearsal rows, whose answers are not written yet. Returns the work, the
    micro-batches, and the `batch_shape` of all of them.
    """
    training, data, target = config.training, config.data, config.data.target_format
    own = [len(row.ids) for row in rows]
    planted = plant(
        dataset, training, tokenizer, target, label_field=data.label_field, longest=max(own)
    )
    rehearsed = rehearsal_lengths(training.rehearsal_rows, tokenizer, target)
    lengths = [*own, *rehearsed, *(len(row.ids) for row in planted.rows)]
    batch = training.effective_batch
    steps = total_steps(len(lengths), batch, training.epochs, training.max_steps)
    rehearsal = [i >= len(rows) for i in range(len(lengths))]
    order = run_order(lengths, batch, steps, training.seed, rehearsal)
    in_order = [lengths[i] for i in order]
    work = Work(
        steps=steps,
        tokens=sum(in_order),
        validation_tokens=(1 + len(evaluation_steps(steps, training.evaluations)))
        * sum(len(row.ids) for row in validation),
    )

    def row(index: int) -> EncodedRow:
        """Return a row of the run; for a rehearsal row, a dataset row of a similar length."""
        if index < len(rows):
            return rows[index]
        return min(rows, key=lambda row: abs(len(row.ids) - lengths[index]))

    starts = range(0, len(order), micro_batch)
    drawn = spread_evenly([sum(in_order[at : at + micro_batch]) for at in starts], samples)
    batches = [order[starts[i] : starts[i] + micro_batch] for i in drawn]
    shape = batch_shape(in_order, batch, micro_batch, end_to_end=end_to_end)
    return work, [[row(i) for i in chosen] for chosen in batches], shape


def rehearsal_lengths(count: int, tokenizer: Any, target_format: Any) -> list[int]:
    """Return the tokens of each rehearsal row, with the longest answer allowed."""
    if not count:
        return []
    short = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": "Yes."}]
        for prompt in prompts()[:count]
    ]
    return [
        len(row.ids) + ANSWER_TOKENS for row in Renderer(tokenizer, target_format).render(short)
    ]


def find_micro_batch(
    setup: TrainingSetup,
    trainer: Any,
    rows: Sequence[EncodedRow],
    sizes: Sequence[int],
    *,
    limit: int,
    about_to: Callable[[int], None],
    runtime: int = 0,
) -> tuple[Rung, Climb]:
    """Measure growing micro-batches of the longest rows; return the last one, and the way there.

    The trainer has an optimiser: it was run for one step. `about_to` is called before each step
    with the smallest of `sizes` that is at least as large: running out of memory may end the
    process. `limit` and `runtime` (memory before the model was loaded) are in bytes.
    """
    import torch

    packed = setup.packing.packed

    def take_step(batch: Sequence[EncodedRow]) -> int:
        inputs = as_batch(torch, batch, trainer.pad_id, packed=packed)
        # What loading the model took, and what the step before left, would hide a small step.
        restart_peak(torch, setup.device)
        items = trainer._get_num_items_in_batch([inputs], torch.device(setup.device))
        trainer.training_step(trainer.model, inputs, items)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return peak_memory(torch, setup.device)

    def measure(count: int) -> int:
        about_to(min(size for size in sizes if size >= count))
        return take_step(longest_rows(rows, count))

    def laid(batch: Sequence[EncodedRow]) -> int:
        return tokens_at_once(trainer.model, batch, packed=packed)

    longest = longest_rows(rows, 1)[0]
    parts = [[tail(longest, share)] for share in PARTS]
    peaks = [Peak(laid(part), take_step(part)) for part in parts]
    climb = Climb(limit, lambda count: laid(longest_rows(rows, count)), measure, peaks, runtime)
    return climb.up(sizes), climb


def measure_step(spec: ProbeSpec, path: Path) -> ProbeReport:
    """Find the largest micro-batch that fits (or the smallest), time it, and check accumulation.

    What is known before a measurement is left in the report's file too: memory may run out.
    """
    began = time.monotonic()
    run = Run.open(spec.run)
    config, processes = run.config.training, run.config.processes_per_node
    torch = load_torch(spec.threads, config.seed)
    import tuneline.training.loop.trainer  # noqa: F401  # its libraries belong to the runtime

    device = device_of(torch)
    precision = choose_precision(config, device)
    setup = TrainingSetup(spec.base, spec.lora, config, precision, device, spec.scratch)
    limit, source = memory_limit(
        torch, config.memory_limit_gib, run.config.pods_of(Size.TRAIN).memory
    )
    if device == "cpu" and processes > 1:
        # Each GPU has a memory of its own; the processes of a pod without share the pod's.
        limit //= processes
        source += f", shared by {processes} processes"
    report = ProbeReport(device=device, precision=precision, limit=limit, limit_source=source)
    probe = _Probe(run, spec, setup, report, path)
    try:
        probe.run(began)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        report.last.out_of_memory = first_line(error)
    report.write(path)
    return report


class _Probe:
    """One probe: load the model, climb to a micro-batch, time it."""

    def __init__(
        self, run: Run, spec: ProbeSpec, setup: TrainingSetup, report: ProbeReport, path: Path
    ) -> None:
        self._config, self._spec, self._setup = run.config, spec, setup
        self._report, self._path, self._notes = report, path, MemoryNotes(run)
        self._tokenizer, data = load_tokenizer(spec.base), run.config.data
        self._rows, self._validation = (
            encode_split(spec.dataset, split, self._tokenizer, data.target_format, data.max_tokens)
            for split in ("train", "validation")
        )

    def _about_to(self, size: int) -> None:
        """Leave word of the micro-batch that is measured next."""
        self._report.tried = [TriedBatch(micro_batch=size)]
        self._report.write(self._path)
        self._notes.trying("gradient_accumulation", size)

    def run(self, began: float) -> None:
        """Fill the report; `began` is the time at which the process did."""
        import torch

        device, sizes = self._setup.device, sorted(self._spec.sizes)
        runtime = peak_memory(torch, device)
        self._about_to(sizes[0])
        model = self._setup.model()
        startup = time.monotonic() - began
        loaded = peak_memory(torch, device)
        packing = choose_packing(
            model,
            self._rows,
            setting=self._setup.config.packing,
            device=device,
            precision=self._setup.precision,
            pad_id=pad_token(self._tokenizer),
        )
        self._setup, self._report.packing = replace(self._setup, packing=packing), packing
        rung, peaks = self._climb(model, sizes, runtime)
        times = self._time(model, rung.rows, startup)
        times["measured"] = max(loaded, rung.memory, times["measured"])
        *too_large, taken = self._report.tried
        longest = max(len(row.ids) for row in self._rows)
        known = {"tokens": peaks[-1].tokens, "longest_row": longest, "peaks": peaks}
        self._report.tried = [*too_large, MeasuredBatch(**dict(taken), **known, **times)]

    def _climb(self, model: Any, sizes: list[int], runtime: int) -> tuple[Rung, list[Peak]]:
        """Find the micro-batch, and note it with those that are too large."""
        rows, report = self._rows, self._report
        part = tail(longest_rows(rows, 1)[0], PARTS[0])
        trainer = self._setup.trainer(model, self._tokenizer, [[part]])
        trainer.train()
        found, climb = find_micro_batch(
            self._setup,
            trainer,
            rows,
            sizes,
            limit=report.limit,
            about_to=self._about_to,
            runtime=runtime,
        )
        larger = [size for size in reversed(sizes) if size > found.rows]
        tried = [*((size, climb.predict(size)) for size in larger), (found.rows, found.predicted)]
        report.tried = [TriedBatch(micro_batch=size, predicted=peak) for size, peak in tried]
        report.write(self._path)
        return found, climb.peaks

    def _time(self, model: Any, micro_batch: int, startup: float) -> dict[str, Any]:
        """Time the trainer's steps and a validation pass; read the peak; check accumulation."""
        import torch

        from tuneline.training.loop.cpu_kernels import shares_prefixes
        from tuneline.training.loop.token_loss import EVAL_BATCH

        setup, rows, validation = self._setup, self._rows, self._validation
        work, typical, shape = plan_work(
            rows,
            validation,
            self._tokenizer,
            self._config,
            self._spec.dataset,
            micro_batch=micro_batch,
            end_to_end=setup.packing.packed or shares_prefixes(model.get_base_model()),
            samples=TIMED,
        )
        trainer = setup.trainer(model, self._tokenizer, [longest_rows(rows, micro_batch), *typical])
        restart_peak(torch, setup.device)
        trainer.train()
        stepped = peak_memory(torch, setup.device)
        trainer.validation = longest_rows(validation, min(EVAL_BATCH, len(validation)))
        trainer.evaluate()
        trainer.validation = validation[:: max(1, len(validation) // EVAL_BATCH)]
        passed = trainer.evaluate()
        return {
            "measured_step": stepped,
            "measured": peak_memory(torch, setup.device),
            "work": work,
            "batches": shape,
            "speed": Speed(
                tokens=tuple(sum(len(row.ids) for row in batch) for batch in typical),
                seconds=tuple(trainer.clock.steps[1:]),
                validation_tokens=sum(len(row.ids) for row in trainer.validation),
                validation_seconds=passed["eval_seconds"],
                startup_seconds=startup,
            ),
            "accumulation": check_accumulation(trainer, rows),
        }


if __name__ == "__main__":
    asked = ProbeSpec.model_validate_json(Path(sys.argv[1]).read_text())
    measure_step(asked, Path(sys.argv[2]))
