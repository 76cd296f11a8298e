"""TTFT and tokens per second over concurrency, and the hardware that follows.

Proves what one machine of this kind serves: at each concurrency level a closed
loop of streamed requests, each of the same number of output tokens, gives TTFT,
TPOT, tokens per second and goodput under the stated objective (definitions:
vLLM's), and the engine's own counters give the batch that it really ran.
Prompts are validation rows, so the shared system turn comes from the prefix
cache as it does in production. A measurement on other hardware than the
declared target can only warn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tuneline.data.tables.rows import VALIDATION
from tuneline.errors import UserError
from tuneline.evaluation.latency.table import (
    DecodeCounters,
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
from tuneline.harness.rows import dataset_rows, of_split, spread
from tuneline.harness.served_models import candidate, serve
from tuneline.run import StepContext
from tuneline.serving.client.chat_protocol import Messages
from tuneline.serving.client.client import EngineClient

# Of every answer: enough for a steady TPOT, few enough for four levels in under a minute on
# two cores.
MAX_TOKENS = 32
# A request without an answer for this long has failed.
REQUEST_SECONDS = 60.0
# The checklist asks for at least four levels.
MIN_LEVELS = 4


def measure_levels(
    client: EngineClient,
    prompts: Sequence[Messages],
    concurrency: Sequence[int],
    requests: int,
    goal: Objective,
) -> list[Level]:
    """Drive a server at each concurrency level.

    Every request of the benchmark takes the next prompt, so that none is answered
    from the cache of the same prompt before, as long as there are enough of them.

    Args:
        client: of the server.
        prompts: to take turns with.
        concurrency: the levels.
        requests: how many at each level; at least two per concurrent one.
        goal: the objective.
    """
    levels = []
    at = 0
    for level in concurrency:
        count = max(requests, 2 * level)
        batch = [prompts[(at + number) % len(prompts)] for number in range(count)]
        at += count
        before = DecodeCounters.read(client.metrics())
        timings, seconds = drive(client, batch, level, MAX_TOKENS)
        batch_size = DecodeCounters.read(client.metrics()).batch_since(before)
        levels.append(summarise(level, timings, seconds, batch_size, goal))
    return levels


def judge(levels: Sequence[Level], measured_on: str, target: str) -> list[Measurement]:
    """What of the table decides."""
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
    rows = of_split(dataset_rows(ctx), VALIDATION)
    if not rows:
        raise UserError("the benchmark takes its prompts from validation; there is no such row")
    prompts = [row.prompt for row in spread(rows, len(rows), ctx.config.training.seed)]
    chosen = candidate(ctx)
    levels = sorted(set(settings.concurrency))
    with (
        serve(chosen.file.path, ctx.config) as server,
        server.client(timeout=REQUEST_SECONDS) as client,
    ):
        threads = server.threads
        measured = measure_levels(client, prompts, levels, settings.latency_requests, goal)
    machine = this_machine()
    where = deployment.target_hardware
    if not is_target(where, machine, on_gpu=False):
        where = "cpu"
    line = hardware_line(measured, machine.text(), goal)
    document = {
        "machine": machine.to_dict(),
        "engine": {"name": "llama_cpp", "threads": threads, "slots": deployment.parallel},
        "objective": vars(goal),
        "max_tokens": MAX_TOKENS,
        "levels": table(measured),
        "hardware": line,
    }
    (ctx.out / "latency.json").write_text(json.dumps(document, indent=1))
    plot(measured, goal, ctx.out / "latency.png")
    return ctx.conclude(
        line,
        [
            *judge(measured, where, deployment.target_hardware),
            measure("objective", goal.text(), "objective"),
            measure("candidate_sha256", chosen.file.sha256, "sha256"),
        ],
    )
