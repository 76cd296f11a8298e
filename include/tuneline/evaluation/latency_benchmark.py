"""latency_benchmark: the declared hardware serves the candidate within the latency objective.

Method: closed loops of streamed requests give TTFT, TPOT, tokens per second and goodput at each
concurrency (definitions: vLLM's `benchmarks/serve.py`, names: AIPerf); the declared load is an open
loop. The server has the limits that the release is served with; a measurement on other hardware
than the declared target, or in production for a target that any CPU meets, can only warn.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tuneline.artifacts.deployment import ENGINE_IDENTITY
from tuneline.asking.hardware import Machine, any_machine, differences, this_machine
from tuneline.asking.models import candidate, server_of
from tuneline.asking.rows import answer_limit, validation_rows
from tuneline.evaluation.latency.findings import (
    judge_levels,
    judge_limits,
    judge_load,
    load_line,
    plot,
)
from tuneline.evaluation.latency.loads import (
    REQUEST_SECONDS,
    ClosedLoop,
    OpenLoop,
    Workload,
    capacity,
    measure_levels,
    measure_load,
    warm_up,
    workload_of,
)
from tuneline.evaluation.latency.table import Objective, hardware_line, table
from tuneline.evidence import Evidence, measure
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import Engine
from tuneline.serving.engines.server import EngineServer, ServedSizes, served_sizes
from tuneline.step_context import StepContext


@dataclass(frozen=True)
class Bench:
    """Everything that one server, with the limits it was started with, was measured by."""

    workload: Workload
    closed: ClosedLoop
    tried: tuple[OpenLoop, ...]
    limits: ServedSizes
    warmed: int

    @property
    def stopped(self) -> str:
        """Why the measurement is not complete; empty if it is."""
        return next((run.stopped for run in self.tried if run.stopped), self.closed.stopped)


def measure_server(ctx: StepContext, server: EngineServer, goal: Objective) -> Bench:
    """Warm a started server up, and measure it at every level and with the declared load."""
    settings, limits = ctx.config.evaluation, ServedSizes.of(server.request)
    rows = validation_rows(ctx)
    workload = workload_of(rows, server.tokenize, answer_limit(ctx.run))
    chosen = settings.latency_warmup
    warmed = limits.parallel if chosen is None else chosen
    with server.client(timeout=REQUEST_SECONDS) as client:
        warm_up(client, workload, warmed, limits.parallel)
    levels = sorted(set(settings.concurrency))
    closed = measure_levels(server, workload, levels, settings.latency_requests, goal)
    tried: list[OpenLoop] = []
    if settings.load.rate is not None and not closed.stopped:
        seed = ctx.config.training.seed
        tried = measure_load(server, workload, settings.load, closed, seed=seed, goal=goal)
    return Bench(workload, closed, tuple(tried), limits, warmed)


def report(
    ctx: StepContext, bench: Bench, machine: Machine, goal: Objective, engine: Engine
) -> dict[str, Any]:
    """Return the content of `latency.json`."""
    settings = ctx.config.evaluation
    return {
        "machine": asdict(machine),
        "engine": {
            "name": engine.name,
            "version": engine.version(),
            "threads": bench.limits.threads,
            "slots": bench.limits.parallel,
            "context_tokens": bench.limits.context_tokens,
        },
        "objective": vars(goal),
        "max_tokens": answer_limit(ctx.run),
        "expected_answers": {**asdict(bench.workload.expected), "capped": bench.workload.capped},
        "warm_up_requests": bench.warmed,
        "complete": not bench.stopped,
        "stopped": bench.stopped,
        "levels": table(bench.closed.levels),
        "load": settings.load.model_dump(),
        "open_loop": [run.to_dict() for run in bench.tried],
    }


def run(ctx: StepContext) -> Evidence:
    """Benchmark the server of the shipped bytes."""
    settings, deployment = ctx.config.evaluation, ctx.config.deployment
    goal = Objective(settings.max_ttft_seconds, settings.max_tpot_seconds, settings.objective_share)
    chosen = candidate(ctx)
    identified = ENGINE_IDENTITY.find(ctx.run) is not None
    served = served_sizes(ENGINE_IDENTITY.read(ctx)) if identified else None
    engine = get_engine(chosen.model.engine)
    # With the threads that it is served with.
    threads = served.threads if served else None
    with server_of(chosen.model, deployment, threads=threads) as server:
        bench = measure_server(ctx, server, goal)
    machine, on_gpu, target = this_machine(), engine.on_gpu(), deployment.target_hardware
    differing = differences(target, machine, on_gpu=on_gpu)
    if ctx.config.profile == "production" and any_machine(target):
        differing.append(f"{target} names neither a model nor cores: any CPU is one")
    differs = "; ".join(differing) or "none"
    line = hardware_line(bench.closed.levels, machine.text(), goal)
    per_server = capacity(settings.load, bench.closed.levels, bench.tried)
    written = report(ctx, bench, machine, goal, engine)
    written |= {"hardware": line, "hardware_differences": differing, "capacity": asdict(per_server)}
    ctx.write_json("latency.json", written)
    plot(bench.closed.levels, goal, ctx.out / "latency.svg")
    partial = f"partial results, since {bench.stopped}: " if bench.stopped else ""
    lowest = bench.closed.levels[0]
    of_load = load_line(settings.load, lowest, bench.tried, per_server, goal)
    return ctx.conclude(
        partial + "; ".join([line, of_load, *differing]),
        [
            *judge_levels(bench.closed, bench.stopped, goal),
            *judge_load(settings.load, bench.tried, per_server, goal),
            *judge_limits(bench.limits, served),
            measure("measured_on", machine.computed_on(on_gpu=on_gpu), "hardware"),
            measure("hardware_declared", target, "hardware"),
            measure("hardware_differences", differs, "hardware", "==", "none", on_breach="warn"),
            measure("answer_tokens_p50", bench.workload.expected.p50, "tokens"),
            measure("answer_tokens_p95", bench.workload.expected.p95, "tokens"),
            measure("warm_up_requests", bench.warmed, "requests"),
            measure("objective", goal.text(), "objective"),
            measure("candidate_sha256", chosen.model.sha256, "sha256"),
        ],
    )
