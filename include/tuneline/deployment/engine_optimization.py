"""The optimised engines: which can serve this model, and what the shipped bytes do on one.

Proves for vLLM, SGLang, TGI, TensorRT-LLM and llama.cpp whether each can serve
the merged checkpoint (said by the engine's own registry where it is installed,
else by a table that names its source), measures the throughput of the shipped
bytes on llama.cpp against the same model asked one request at a time, and names
the engine that was built. Compatibility alone is only a warning.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneline.deployment.build_engine import IDENTITY, NOT_BUILT
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.harness.load_client import Timing, drive, errors_of
from tuneline.harness.rows import validation_rows
from tuneline.harness.served_models import candidate, serve
from tuneline.run import StepContext
from tuneline.serving.engines import all_engines
from tuneline.serving.engines.base import Compatibility, read_facts

MEASURED = "llama_cpp"
REQUESTS, MAX_TOKENS = 12, 24


@dataclass(frozen=True)
class Throughput:
    """Tokens per second of one engine, alone and with its slots full."""

    engine: str
    sequential: float
    batched: float
    parallel: int
    failed: int
    errors: tuple[str, ...] = ()

    @property
    def speedup(self) -> float:
        """What batching gains."""
        return self.batched / self.sequential if self.sequential else 0.0


def throughput(timings: Sequence[Timing], seconds: float) -> float:
    """Output tokens per second over a whole run of requests."""
    return sum(timing.output_tokens for timing in timings if timing.ok) / seconds


def judge(
    table: Sequence[Compatibility], measured: Throughput | None, engine: str, built: bool
) -> list[Measurement]:
    """What decides.

    Args:
        table: what each engine says of the model.
        measured: throughput of the shipped bytes, None when no engine ran here.
        engine: the engine that ships.
        built: whether it was built.
    """
    compatible = {entry.engine: entry.compatible for entry in table}
    ran = measured is not None and measured.failed == 0 and measured.batched > 0
    found = [
        measure("engines_compatible", sum(compatible.values()), "engines", ">=", 1),
        measure("shipping_engine_compatible", compatible.get(engine, False), "flag", "==", True),
        measure("engines_measured", int(ran), "engines", ">=", 1, on_breach="warn"),
        measure("shipping_engine_built", built, "flag", "==", True),
    ]
    found += [measure(f"{name}_compatible", ok, "flag") for name, ok in compatible.items()]
    if measured is not None:
        found += [
            measure("failed_requests", measured.failed, "requests", "<=", 0),
            measure("tokens_per_s_alone", round(measured.sequential, 1), "tokens/s"),
            measure("tokens_per_s_batched", round(measured.batched, 1), "tokens/s"),
            measure("batching_speedup", round(measured.speedup, 2), "ratio"),
        ]
    return found


def measure_llama_cpp(ctx: StepContext) -> tuple[Throughput, str]:
    """Throughput of the shipped bytes on llama.cpp, and their hash."""
    prompts = [row.prompt for row in validation_rows(ctx, REQUESTS)]
    shipped = candidate(ctx)
    slots = ctx.config.deployment.parallel
    with serve(shipped.file.path, ctx.config) as server, server.client() as client:
        # The first pass fills the prefix cache with the shared system turn for both.
        drive(client, prompts[:1], 1, 1)
        alone, alone_seconds = drive(client, prompts, 1, MAX_TOKENS)
        full, full_seconds = drive(client, prompts, slots, MAX_TOKENS)
    failed = sum(not timing.ok for timing in (*alone, *full))
    result = Throughput(
        MEASURED,
        throughput(alone, alone_seconds),
        throughput(full, full_seconds),
        slots,
        failed,
        tuple(errors_of((*alone, *full))),
    )
    return result, shipped.file.sha256


def run(ctx: StepContext) -> Evidence:
    """Ask every engine, measure the one that runs here, name the one that was built."""
    merged = ctx.input_dir("export_candidate", "merged")
    facts = read_facts(merged)
    table = [engine.check(facts) for engine in all_engines()]
    measured, digest = measure_llama_cpp(ctx)
    engine = ctx.config.deployment.engine
    built = ctx.has("build_engine", IDENTITY)
    name = IDENTITY if built else NOT_BUILT
    identity: dict[str, Any] = json.loads(ctx.input("build_engine", name).read_text())
    document = {
        "architecture": facts.architecture,
        "engines": [entry.to_dict() for entry in table],
        "measured": {**vars(measured), "speedup": round(measured.speedup, 3)},
        "shipping_engine": {"name": engine, "built": built, "identity": identity},
    }
    (ctx.out / "engines.json").write_text(json.dumps(document, indent=1))
    able = [entry.engine for entry in table if entry.compatible]
    unable = [f"{e.engine} ({e.reason})" for e in table if not e.compatible]
    summary = (
        f"{facts.architecture}: {', '.join(able)} can serve it"
        + (f", not {'; '.join(unable)}" if unable else "")
        + f"; shipped bytes on llama.cpp: {measured.batched:.0f} tokens/s with "
        f"{measured.parallel} slots, {measured.sequential:.0f} alone"
    )
    summary += f"; {engine} is built" if built else f"; {engine} {identity['reason']}"
    return ctx.conclude(
        summary,
        [
            *judge(table, measured, engine, built),
            measure("candidate_sha256", digest, "sha256"),
        ],
    )
