"""latency_benchmark: the declared hardware serves the candidate within the latency objective.

Method: at each concurrency level a closed loop of streamed requests, all with the same number
of output tokens, gives TTFT, TPOT, tokens per second and goodput under the objective
(definitions: vLLM's `benchmarks/serve.py`); the engine's own counters give the batch that it
really ran. Prompts are validation rows, so the system turn that they share comes from the
prefix cache, as in production. A measurement on other hardware than the declared target can
only warn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from tuneline.evaluation.latency.table import (
    Level,
    Objective,
    hardware_line,
    plot,
    summarise,
    sustained,
    table,
)
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.harness.hardware import is_target, this_machine
from tuneline.harness.load_client import drive
from tuneline.harness.rows import validation_rows
from tuneline.harness.served_models import candidate, serve
from tuneline.run import StepContext
from tuneline.serving.client.chat_protocol import Messages
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine_server import EngineServer

# Tokens of every answer: enough for a steady TPOT, few enough for four levels in under a
# minute on two cores.
MAX_TOKENS = 32
# A request without an answer after this long has failed.
REQUEST_SECONDS = 60.0
# The checklist asks for at least four levels.
MIN_LEVELS = 4


def measure_levels(
    server: EngineServer,
    prompts: Sequence[Messages],
    concurrency: Sequence[int],
    requests: int,
    goal: Objective,
) -> list[Level]:
    """Drive a server at each concurrency level.

    Every request takes the next prompt, so that, with enough prompts, none is answered from
    the prefix cache of the same prompt.

    Args:
        server: the server, which has started.
        prompts: the prompts, in the order in which they are sent; repeated if too few.
        concurrency: the levels.
        requests: number of requests at each level; never fewer than two per concurrent one.
        goal: the objective.
    """
    levels = []
    at = 0
    with server.client(timeout=REQUEST_SECONDS) as client:
        for level in concurrency:
            count = max(requests, 2 * level)
            batch = [prompts[(at + number) % len(prompts)] for number in range(count)]
            at += count
            before = server.counters()
            timings, seconds = drive(client, batch, level, MAX_TOKENS)
            batch_size = server.counters().batch_since(before)
            levels.append(summarise(level, timings, seconds, batch_size, goal))
    return levels


def judge(levels: Sequence[Level], measured_on: str, target: str) -> list[Measurement]:
    """Measure the levels against the objective and the hardware against the declared one."""
    best = sustained(levels)
    within = best.concurrency if best else 0
    lowest = min(levels, key=lambda level: level.concurrency)
    peak = max(levels, key=lambda level: level.tokens_per_s)
    found = [
        measure("levels", len(levels), "levels", ">=", MIN_LEVELS),
        measure("failed_requests", sum(level.failed for level in levels), "requests", "<=", 0),
        measure("concurrency_within_objective", within, "requests", ">=", lowest.concurrency),
        measure("measured_on", measured_on, "hardware", "==", target, on_breach="warn"),
        measure("peak_tokens_per_s", round(peak.tokens_per_s, 1), "tokens/s"),
    ]
    for level in levels:
        name = f"at_{level.concurrency}"
        found += [
            measure(f"ttft_p50_{name}", round(level.ttft_p50, 4), "s"),
            measure(f"tpot_p50_{name}", round(level.tpot_p50, 4), "s"),
            measure(f"tokens_per_s_{name}", round(level.tokens_per_s, 1), "tokens/s"),
            measure(f"goodput_{name}", round(level.goodput_per_s, 3), "requests/s"),
            measure(f"batch_{name}", round(level.batch, 2), "requests"),
        ]
    return found


def run(ctx: StepContext) -> Evidence:
    """Benchmark the server of the shipped bytes."""
    settings, deployment = ctx.config.evaluation, ctx.config.deployment
    goal = Objective(settings.max_ttft_seconds, settings.max_tpot_seconds)
    prompts = [row.prompt for row in validation_rows(ctx)]
    chosen = candidate(ctx)
    levels = sorted(set(settings.concurrency))
    engine = get_engine(chosen.model.engine)
    with serve(chosen.model, deployment) as server:
        threads = server.request.threads
        measured = measure_levels(server, prompts, levels, settings.latency_requests, goal)
    machine = this_machine()
    where = deployment.target_hardware
    if not is_target(where, machine, on_gpu=engine.on_gpu()):
        where = "cpu"
    line = hardware_line(measured, machine.text(), goal)
    report = {
        "machine": asdict(machine),
        "engine": {
            "name": engine.name,
            "version": engine.version(),
            "threads": threads,
            "slots": deployment.parallel,
        },
        "objective": vars(goal),
        "max_tokens": MAX_TOKENS,
        "levels": table(measured),
        "hardware": line,
    }
    ctx.write_json("latency.json", report)
    plot(measured, goal, ctx.out / "latency.png")
    return ctx.conclude(
        line,
        [
            *judge(measured, where, deployment.target_hardware),
            measure("objective", goal.text(), "objective"),
            measure("candidate_sha256", chosen.model.sha256, "sha256"),
        ],
    )
