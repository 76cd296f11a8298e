"""gradient_accumulation: the effective batch is reached inside the memory limit.

Three things are shown. The micro-batch fits: its peak is predicted from smaller micro-batches
and measured on the real model with the longest rows of the dataset. The effective batch is
exactly micro-batch × accumulation × world size. Accumulation changes nothing: loss and gradients
equal those of one large batch within float tolerance, with tokens weighted over the whole step
and not per micro-batch (the fault of transformers#35203 and axolotl#1100). The same probe times
micro-batches of the run, so hours and cost are estimated, and an estimate above
`training.max_hours` or `training.max_cost` fails before training starts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.training import LORA, PLAN, Packing, Plan
from tuneline.bases import base_of
from tuneline.errors import RetryableError, UserError
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.step_context import StepContext
from tuneline.training.budget.estimate import Speed, Work, advice, estimate
from tuneline.training.budget.estimate import judge as judge_estimate
from tuneline.training.memory.out_of_memory import ADVICE, MemoryNotes, allowed, micro_batches
from tuneline.training.memory.predict import GIB
from tuneline.training.packing.evidence import measured, sentence

# Prediction and measurement may differ by this share before the prediction is doubted.
MODEL_ERROR = 0.10
# A normalisation per micro-batch must show this many times more clearly than rounding.
POWER = 3.0

Probe = Callable[[Sequence[int]], Mapping[str, Any]]


@dataclass(frozen=True)
class Attempt:
    """One micro-batch that was tried, with the answer of the probe."""

    micro_batch: int
    found: Mapping[str, Any]
    limit: int

    @property
    def predicted(self) -> int:
        """Predicted peak, bytes."""
        return int(self.found["predicted"]["total"])

    @property
    def measured(self) -> int | None:
        """Measured peak, bytes; None if the prediction ruled it out or memory ran out."""
        return int(self.found["measured"]) if "measured" in self.found else None

    @property
    def fits(self) -> bool:
        """True if it was measured within the limit."""
        return self.measured is not None and self.measured <= self.limit


def candidates(effective_batch: int, world_size: int, micro_batch: int | None) -> list[int]:
    """Return the micro-batches to try, largest first; one if the configuration names it.

    Raises:
        UserError: if the effective batch can't be reached exactly.
    """
    sizes = micro_batches(effective_batch, world_size)
    if not sizes:
        raise UserError(
            f"training.effective_batch {effective_batch} can't be shared by {world_size} "
            f"processes; make it a multiple of {world_size}"
        )
    if micro_batch is None:
        return sizes
    if micro_batch not in sizes:
        known = ", ".join(map(str, sizes))
        raise UserError(
            f"training.micro_batch {micro_batch} × accumulation × {world_size} can't give "
            f"training.effective_batch {effective_batch}; choose among {known}"
        )
    return [micro_batch]


def largest_safe(sizes: Sequence[int], probe: Probe) -> tuple[Attempt, list[Attempt]]:
    """Probe micro-batches until one is measured within the limit.

    Args:
        sizes: micro-batches to choose among.
        probe: climbs to the largest micro-batch that fits, see `memory.probe`.

    Returns:
        The micro-batch that is taken (the smallest if none fits) and all that were tried.

    Raises:
        UserError: if memory ran out with the smallest one.
    """
    tried: list[Attempt] = []
    left = list(sizes)
    while left:
        answer = probe(left)
        limit = int(answer["limit"])
        tried += [Attempt(int(found["micro_batch"]), found, limit) for found in answer["tried"]]
        if tried[-1].fits:
            break
        left = [size for size in left if size < tried[-1].micro_batch]
    if tried[-1].measured is None:
        raise UserError(
            f"a micro-batch of {tried[-1].micro_batch} runs out of memory "
            f"({tried[-1].found['out_of_memory']}), and there is no smaller one to try: {ADVICE}"
        )
    return tried[-1], tried


def judge(plan: Plan, accumulation: Mapping[str, Any]) -> list[Measurement]:
    """Return the measurements of a plan and of its accumulation check."""
    reached = plan.micro_batch * plan.accumulation * plan.world_size
    tolerance = float(accumulation["tolerance"])
    # The prediction is of training steps; the measured peak includes a validation pass.
    error = plan.predicted_peak_bytes / plan.measured_step_bytes - 1
    limit = round(plan.memory_limit_bytes / GIB, 3)
    return [
        measure("effective_batch", reached, "rows", "==", plan.effective_batch),
        measure("micro_batch", plan.micro_batch, "rows"),
        measure("accumulation", plan.accumulation, "micro-batches"),
        measure("world_size", plan.world_size, "processes"),
        measure("longest_row", plan.longest_row, "tokens", "<=", plan.max_length),
        measure("measured_peak", round(plan.measured_peak_bytes / GIB, 3), "GiB", "<=", limit),
        measure("predicted_peak", round(plan.predicted_peak_bytes / GIB, 3), "GiB"),
        measure(
            "prediction_error", round(abs(error), 4), "share", "<=", MODEL_ERROR, on_breach="warn"
        ),
        measure("loss_difference", accumulation["loss_difference"], "share", "<=", tolerance),
        measure(
            "gradient_difference", accumulation["gradient_difference"], "share", "<=", tolerance
        ),
        measure(
            "difference_if_normalised_per_micro_batch",
            accumulation["naive_difference"],
            "share",
            ">=",
            POWER * tolerance,
            on_breach="warn",
        ),
        measure("compared_rows", accumulation["rows"], "rows", ">=", 2),
        measure("tokens_per_second", round(plan.tokens_per_second, 1), "1/s"),
    ]


def in_process(spec: Mapping[str, Any], scratch: Path) -> Mapping[str, Any]:
    """Run the memory probe in a fresh process.

    Returns:
        Its answer. If the kernel killed it, the answer that it left before, with its last size
        marked `out_of_memory`.

    Raises:
        RetryableError: if another signal killed the process.
        UserError: if it refused its input.
    """
    asked, answered = scratch / "probe.json", scratch / "probed.json"
    asked.write_text(json.dumps(dict(spec)))
    answered.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "tuneline.training.memory.probe", str(asked), str(answered)],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(answered.read_text())
        return found
    if done.returncode == -signal.SIGKILL and answered.exists():
        # Linux kills what takes most where memory runs out; nothing else is known to do it here.
        found = json.loads(answered.read_text())
        found["tried"][-1]["out_of_memory"] = "killed while its memory was measured"
        return found
    if done.returncode < 0:
        raise RetryableError(
            f"the memory probe with micro-batches {spec['sizes']} was killed by signal "
            f"{-done.returncode}; set training.memory_limit_gib or a smaller training.micro_batch"
        )
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise UserError(f"the memory probe failed: {last}")


def sizes_left(ctx: StepContext) -> list[int]:
    """Return the micro-batches below those with which an earlier try ran out of memory.

    Raises:
        UserError: if none is left.
    """
    config = ctx.config.training
    sizes = candidates(config.effective_batch, ctx.config.world_size, config.micro_batch)
    failures = MemoryNotes(ctx.run).failures()
    left = allowed(sizes, failures, "gradient_accumulation")
    for failure in failures:
        ctx.log(f"an earlier try ran out of memory with a micro-batch of {failure.micro_batch}")
    if not left:
        raise UserError(
            f"a micro-batch of {sizes[-1]} runs out of memory; "
            + (f"leave training.micro_batch open, or {ADVICE}" if config.micro_batch else ADVICE)
        )
    return left


def _outcome(found: Mapping[str, Any]) -> str:
    """Describe what a micro-batch was predicted to take and what it took."""
    if "out_of_memory" in found:
        return f"out of memory ({found['out_of_memory']})"
    predicted = f"{found['predicted']['total'] / GIB:.2f} GiB predicted"
    if "measured" not in found:
        return f"{predicted}, not tried"
    return f"{predicted}, {found['measured'] / GIB:.2f} GiB measured"


def run(ctx: StepContext) -> Evidence:
    """Find the largest micro-batch that fits, check accumulation and write `plan.json`."""
    from tuneline.training.loop.compute import training_threads

    config = ctx.config.training
    processes = ctx.config.world_size
    sizes = sizes_left(ctx)
    base = base_of(ctx)
    threads = max(1, training_threads(config) // ctx.config.processes_per_node)
    common = {
        "base": str(base.path),
        "dataset": str(DATASET.fetch(ctx)),
        "lora": LORA.read(ctx).model_dump(),
        "training": config.model_dump(mode="json"),
        "target_format": ctx.config.data.target_format,
        "label_field": ctx.config.data.label_field,
        "max_tokens": ctx.config.data.max_tokens,
        "threads": threads,
        "pod_memory": ctx.config.pods.memory,
        "processes": ctx.config.processes_per_node,
        "scratch": str(ctx.scratch / "probe"),
        "run": ctx.run.uri,
    }

    machine: dict[str, Any] = {}

    def probe(left: Sequence[int]) -> Mapping[str, Any]:
        machine.update(in_process({**common, "sizes": list(left)}, ctx.scratch))
        for found in machine["tried"]:
            ctx.log(
                f"micro-batch {found['micro_batch']}: {_outcome(found)}, "
                f"limit {machine['limit'] / GIB:.2f} GiB"
            )
        return dict(machine)

    taken, tried = largest_safe(sizes, probe)
    found, limit, source = taken.found, taken.limit, machine["limit_source"]
    assert taken.measured is not None
    expected = estimate(Work(**found["work"]), Speed(**found["speed"]), ctx.config)
    packing = Packing.model_validate(machine["packing"])
    plan = Plan(
        micro_batch=taken.micro_batch,
        accumulation=config.effective_batch // (taken.micro_batch * processes),
        world_size=processes,
        effective_batch=config.effective_batch,
        max_length=ctx.config.data.max_tokens,
        longest_row=found["longest_row"],
        threads=threads,
        device=machine["device"],
        precision=machine["precision"],
        packing=packing,
        gradient_checkpointing=config.gradient_checkpointing,
        memory_limit_bytes=limit,
        memory_limit_source=source,
        predicted_peak_bytes=taken.predicted,
        measured_peak_bytes=taken.measured,
        measured_step_bytes=int(found["measured_step"]),
        predicted_parts=found["predicted"]["parts"],
        tokens_per_second=expected.tokens_per_second / processes,
        estimate=asdict(expected),
        tried=[dict(attempt.found) for attempt in tried],
    )
    PLAN.write(ctx, plan)
    MemoryNotes(ctx.run).clear()
    return ctx.conclude(
        f"micro-batch {plan.micro_batch} × accumulation {plan.accumulation} × {processes} = "
        f"{plan.effective_batch} rows a step{sentence(packing)}; "
        f"peak {plan.measured_step_bytes / GIB:.2f} GiB in training "
        f"({plan.predicted_peak_bytes / GIB:.2f} predicted), "
        f"{plan.measured_peak_bytes / GIB:.2f} with validation, limit {limit / GIB:.2f} "
        f"({source}){'' if taken.fits else f': {ADVICE}'}; accumulated gradients differ from one "
        f"large batch by {found['accumulation']['gradient_difference']:.1e}; "
        f"{expected.sentence()}{advice(expected, ctx.config)}",
        [
            *judge(plan, found["accumulation"]),
            *measured(packing, found["batches"], config.packing),
            *judge_estimate(expected, ctx.config),
        ],
    )
