"""engine_optimization: prove that the shipping engine can serve this model and was built.

Each of vLLM, SGLang, TGI, TensorRT-LLM and llama.cpp is asked whether it can serve the merged
checkpoint: vLLM's own registry and the exporter of llama.cpp answer where they are installed, else
a table that names its source.
The throughput of the shipped bytes is measured on the engine that ships, with all slots taken and
one request at a time. An engine that was not built or that answers nothing fails the item: what
another engine would do with the model counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tuneline.artifacts.deployment import ENGINE_IDENTITY, NOT_BUILT, BuildReport, EngineIdentity
from tuneline.artifacts.training import MERGED
from tuneline.asking.load import drive, errors_of
from tuneline.asking.models import candidate, server_of
from tuneline.asking.rows import validation_rows
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.serving.engines import all_engines, get_engine
from tuneline.serving.engines.engine import Compatibility, Engine, ServedModel, read_facts
from tuneline.step_context import StepContext

REQUESTS, MAX_TOKENS = 12, 24
# All slots together write fewer tokens than one alone: beyond the noise of one measurement.
_LEAST_SPEEDUP = 0.9


@dataclass(frozen=True)
class Throughput:
    """Speed of one engine with one request at a time and with all slots taken, in tokens/s."""

    engine: str
    sequential: float
    batched: float
    parallel: int
    failed: int
    errors: tuple[str, ...] = ()

    @property
    def speedup(self) -> float:
        """The gain from batching, a ratio; below 1 it is a loss."""
        return self.batched / self.sequential if self.sequential else 0.0


def judge(
    table: Sequence[Compatibility], measured: Throughput | None, engine: str, built: bool
) -> list[Measurement]:
    """Judge compatibility, build and throughput; None if the engine was not built."""
    compatible = any(entry.compatible for entry in table if entry.engine == engine)
    ran = measured is not None and measured.failed == 0 and measured.batched > 0
    found = [
        measure("shipping_engine_compatible", compatible, "flag", "==", True),
        measure("shipping_engine_built", built, "flag", "==", True),
        measure("engines_measured", int(ran), "engines", ">=", 1),
    ]
    if measured is not None:
        gain = round(measured.speedup, 2)
        found += [
            measure("failed_requests", measured.failed, "requests", "<=", 0),
            measure("tokens_per_s_alone", round(measured.sequential, 1), "tokens/s"),
            measure("tokens_per_s_batched", round(measured.batched, 1), "tokens/s"),
            measure("batching_speedup", gain, "ratio", ">=", _LEAST_SPEEDUP, on_breach="warn"),
        ]
    return found


def measure_throughput(ctx: StepContext, model: ServedModel) -> Throughput:
    """Measure the throughput of the shipped bytes on their engine."""
    prompts = [row.prompt for row in validation_rows(ctx, REQUESTS)]
    deployment = ctx.config.deployment
    with server_of(model, deployment) as server, server.client() as client:
        # The first request fills the prefix cache with the shared system turn.
        drive(client, prompts[:1], 1, 1)
        runs = [drive(client, prompts, n, MAX_TOKENS) for n in (1, deployment.parallel)]
    alone, batched = (
        sum(timing.output_tokens for timing in timings if timing.ok) / seconds
        for timings, seconds in runs
    )
    timings = [timing for found, _ in runs for timing in found]
    failed = sum(not timing.ok for timing in timings)
    errors = tuple(errors_of(timings))
    return Throughput(model.engine, alone, batched, deployment.parallel, failed, errors)


def run(ctx: StepContext) -> Evidence:
    """Ask every engine whether it could serve, and measure the one that ships."""
    facts = read_facts(MERGED.fetch(ctx))
    table = [engine.check(facts) for engine in all_engines()]
    engine = get_engine(ctx.config.deployment.engine)
    built = ENGINE_IDENTITY.exists(ctx)
    outcome = ENGINE_IDENTITY.read(ctx) if built else NOT_BUILT.read(ctx)
    chosen = candidate(ctx) if built else None
    measured = measure_throughput(ctx, chosen.model) if chosen else None
    document = {
        "architecture": facts.architecture,
        "engines": [asdict(entry) for entry in table],
        "measured": {**vars(measured), "speedup": round(measured.speedup, 3)} if measured else None,
        "shipping_engine": {"name": engine.name, "built": built, "identity": outcome.model_dump()},
    }
    ctx.write_json("engines.json", document)
    able = ", ".join(entry.engine for entry in table if entry.compatible)
    unable = "; ".join(f"{e.engine} ({e.reason})" for e in table if not e.compatible)
    found = judge(table, measured, engine.name, built)
    if chosen:
        found.append(measure("candidate_sha256", chosen.model.sha256, "sha256"))
    return ctx.conclude(
        f"{facts.architecture}: {able or 'no engine'} can serve it"
        + (f", not {unable}" if unable else "")
        + f"; {_speed(engine, measured, outcome)}",
        found,
    )


def _speed(
    engine: Engine, measured: Throughput | None, outcome: EngineIdentity | BuildReport
) -> str:
    if measured is None:
        return f"{engine.name} was not built, so nothing ships: {getattr(outcome, 'reason', '')}"
    return (
        f"the shipped bytes on {engine.title}: {measured.batched:.0f} tokens/s with "
        f"{measured.parallel} slots, {measured.sequential:.0f} alone"
    )
