"""gradient_accumulation: the effective batch is reached inside the memory limit.

The micro-batch fits: its peak is predicted from smaller ones and measured on the real model with
the longest rows. The effective batch is exactly micro-batch × accumulation × world size.
Accumulation changes nothing: loss and gradients equal those of one large batch, with tokens
weighted over the whole step (the fault of transformers#35203 and axolotl#1100). Hours and cost are
estimated, and fail above `training.max_hours` or `training.max_cost`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.training import LORA, PLAN, Plan
from tuneline.bases import base_of
from tuneline.errors import RetryableError, UserError
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.step_context import StepContext
from tuneline.training.resources.checks import (
    AccumulationCheck,
    packing_measurements,
    packing_sentence,
)
from tuneline.training.resources.estimate import Estimate, advice, estimate
from tuneline.training.resources.estimate import judge as judge_estimate
from tuneline.training.resources.out_of_memory import (
    ADVICE,
    GIB,
    MemoryNotes,
    allowed,
    micro_batches,
)
from tuneline.training.resources.probe import MeasuredBatch, ProbeReport, ProbeSpec, TriedBatch

# Prediction and measurement may differ by this share before the prediction is doubted.
MODEL_ERROR = 0.10
# A normalisation per micro-batch must show this many times more clearly than rounding.
POWER = 3.0

Probe = Callable[[Sequence[int]], ProbeReport]


def candidates(effective_batch: int, world_size: int, micro_batch: int | None) -> list[int]:
    """Return the micro-batches to try, largest first; one if the configuration names it.

    UserError if the effective batch can't be reached exactly.
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


def largest_safe(
    sizes: Sequence[int], probe: Probe
) -> tuple[ProbeReport, MeasuredBatch, list[TriedBatch]]:
    """Probe micro-batches until one is measured within the limit.

    Returns the last report, the one taken (the smallest if none fits), and all that were tried;
    UserError if memory ran out with the smallest.
    """
    tried: list[TriedBatch] = []
    left = list(sizes)
    while left:
        report = probe(left)
        tried += report.tried
        last = report.last
        if isinstance(last, MeasuredBatch) and last.measured <= report.limit:
            break
        left = [size for size in left if size < last.micro_batch]
    if not isinstance(last, MeasuredBatch):
        raise UserError(
            f"a micro-batch of {last.micro_batch} runs out of memory "
            f"({last.out_of_memory}), and there is no smaller one to try: {ADVICE}"
        )
    return report, last, tried


def judge(plan: Plan, accumulation: AccumulationCheck) -> list[Measurement]:
    """Return the measurements of a plan and of its accumulation check."""
    reached = plan.micro_batch * plan.accumulation * plan.world_size
    # The prediction is of training steps; the measured peak includes a validation pass.
    error = round(abs(plan.predicted_peak_bytes / plan.measured_step_bytes - 1), 4)
    limit = round(plan.memory_limit_bytes / GIB, 3)
    same_loss, same_gradients = accumulation.loss_tolerance, accumulation.gradient_tolerance
    blind, least = "difference_if_normalised_per_micro_batch", POWER * same_gradients
    return [
        measure("effective_batch", reached, "rows", "==", plan.effective_batch),
        measure("micro_batch", plan.micro_batch, "rows"),
        measure("accumulation", plan.accumulation, "micro-batches"),
        measure("world_size", plan.world_size, "processes"),
        measure("longest_row", plan.longest_row, "tokens", "<=", plan.max_length),
        measure("measured_peak", round(plan.measured_peak_bytes / GIB, 3), "GiB", "<=", limit),
        measure("predicted_peak", round(plan.predicted_peak_bytes / GIB, 3), "GiB"),
        measure("prediction_error", error, "share", "<=", MODEL_ERROR, on_breach="warn"),
        measure("loss_difference", accumulation.loss_difference, "share", "<=", same_loss),
        measure(
            "gradient_difference", accumulation.gradient_difference, "share", "<=", same_gradients
        ),
        measure("gradient_rounding", accumulation.gradient_rounding, "share"),
        measure(blind, accumulation.naive_difference, "share", ">=", least, on_breach="warn"),
        measure("compared_rows", accumulation.rows, "rows", ">=", 2),
        measure("tokens_per_second", round(plan.tokens_per_second, 1), "1/s"),
    ]


def in_process(spec: ProbeSpec, scratch: Path) -> ProbeReport:
    """Run the memory probe in a fresh process, and return its report.

    If the kernel killed it, that is the one that it left before, with its last size marked
    `out_of_memory`. RetryableError if another signal did; UserError if it refused its input.
    """
    asked, answered = scratch / "probe.json", scratch / "probed.json"
    asked.write_text(spec.model_dump_json())
    answered.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "tuneline.training.resources.probe", str(asked), str(answered)],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return ProbeReport.read(answered)
    if done.returncode == -signal.SIGKILL and answered.exists():
        # Linux kills what takes most where memory runs out; nothing else is known to do it here.
        report = ProbeReport.read(answered)
        report.last.out_of_memory = "killed while its memory was measured"
        return report
    if done.returncode < 0:
        raise RetryableError(
            f"the memory probe with micro-batches {spec.sizes} was killed by signal "
            f"{-done.returncode}; set training.memory_limit_gib or a smaller training.micro_batch"
        )
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise UserError(f"the memory probe failed: {last}")


def sizes_left(ctx: StepContext) -> list[int]:
    """Return the micro-batches below those with which an earlier try ran out of memory.

    UserError if none is left.
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


def run(ctx: StepContext) -> Evidence:
    """Find the largest micro-batch that fits, check accumulation and write `plan.json`."""
    from tuneline.training.loop.model import training_threads

    config = ctx.config.training
    sizes = sizes_left(ctx)
    spec = ProbeSpec(
        run=ctx.run.uri,
        base=base_of(ctx).path,
        dataset=DATASET.fetch(ctx),
        lora=LORA.read(ctx),
        threads=max(1, training_threads(config) // ctx.config.processes_per_node),
        scratch=ctx.scratch / "probe",
        sizes=sizes,
    )

    def probe(left: Sequence[int]) -> ProbeReport:
        report = in_process(spec.model_copy(update={"sizes": list(left)}), ctx.scratch)
        for tried in report.tried:
            took = tried.out_of_memory or "predicted not to fit"
            if isinstance(tried, MeasuredBatch):
                took = f"{tried.measured / GIB:.2f} GiB"
            ctx.log(f"micro-batch {tried.micro_batch}: {took}, limit {report.limit / GIB:.2f} GiB")
        return report

    report, taken, tried = largest_safe(sizes, probe)
    estimated = estimate(taken.work, taken.speed, ctx.config)
    plan = _plan(ctx, spec, report, taken, estimated).model_copy(
        update={"tried": [each.model_dump(mode="json", exclude_none=True) for each in tried]}
    )
    PLAN.write(ctx, plan)
    MemoryNotes(ctx.run).clear()
    limit = report.limit
    return ctx.conclude(
        f"micro-batch {plan.micro_batch} × accumulation {plan.accumulation} × "
        f"{plan.world_size} = {plan.effective_batch} rows a step{packing_sentence(plan.packing)}; "
        f"peak {plan.measured_step_bytes / GIB:.2f} GiB in training "
        f"({plan.predicted_peak_bytes / GIB:.2f} predicted), "
        f"{plan.measured_peak_bytes / GIB:.2f} with validation, limit {limit / GIB:.2f} "
        f"({report.limit_source}){'' if taken.measured <= limit else f': {ADVICE}'}; accumulated "
        f"gradients differ from one large batch by {taken.accumulation.gradient_difference:.1e}; "
        f"{estimated.sentence()}{advice(estimated, ctx.config)}",
        [
            *judge(plan, taken.accumulation),
            *packing_measurements(plan.packing, taken.batches, config.packing),
            *judge_estimate(estimated, ctx.config),
        ],
    )


def _plan(
    ctx: StepContext,
    spec: ProbeSpec,
    report: ProbeReport,
    taken: MeasuredBatch,
    estimated: Estimate,
) -> Plan:
    config, processes = ctx.config.training, ctx.config.world_size
    return Plan(
        micro_batch=taken.micro_batch,
        accumulation=config.effective_batch // (taken.micro_batch * processes),
        world_size=processes,
        effective_batch=config.effective_batch,
        max_length=ctx.config.data.max_tokens,
        longest_row=taken.longest_row,
        threads=spec.threads,
        device=report.device,
        precision=report.precision,
        packing=report.packing,
        gradient_checkpointing=config.gradient_checkpointing,
        memory_limit_bytes=report.limit,
        memory_limit_source=report.limit_source,
        predicted_peak_bytes=taken.predicted.total,
        measured_peak_bytes=taken.measured,
        measured_step_bytes=taken.measured_step,
        predicted_parts=taken.predicted.parts,
        tokens_per_second=estimated.tokens_per_second / processes,
        estimate=asdict(estimated),
    )
