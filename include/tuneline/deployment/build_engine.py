"""build_engine: build the engine that ships, have it answer, and identify it.

An engine that compiles (TensorRT-LLM) is built here of the chosen variant, on the GPU that it
will serve on. The others load the chosen bytes as they are. Either way an engine counts as built
only after a server of the shipped bytes has answered a prompt: `identity.json` exists only then.
Otherwise `not_built.json` holds the reason and the commands for a pod that could build it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tuneline.artifacts.deployment import (
    CHOICE,
    ENGINE,
    ENGINE_IDENTITY,
    ENGINE_REPORT,
    NOT_BUILT,
    REFERENCE,
    BuildReport,
    EngineIdentity,
)
from tuneline.asking.models import calibration_of, chosen_variant, hashed, server_of, unquantised
from tuneline.asking.rows import answer_limit, validation_rows
from tuneline.evidence import Measurement, Record, measure
from tuneline.licenses.findings import audit_engine_packages
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import BuildRequest, Engine, ServedModel, machine_identity
from tuneline.serving.engines.server import ServedSizes
from tuneline.step_context import StepContext


def compile_engine(ctx: StepContext, engine: Engine) -> BuildReport:
    """Have an engine that compiles build from the exported model, in the chosen variant."""
    deployment = ctx.config.deployment
    variant = CHOICE.read(ctx).variant
    request = BuildRequest(
        model_dir=unquantised(ctx).path,
        out_dir=ENGINE.path(ctx),
        quantization=None if variant == REFERENCE else variant,
        max_batch_size=deployment.parallel,
        max_total_tokens=deployment.context_tokens,
        calibration=calibration_of(ctx, variant),
    )
    return engine.build(request)


def shipped(ctx: StepContext, engine: Engine) -> tuple[ServedModel | None, BuildReport]:
    """Return the bytes that ship and how they were made; no bytes if they could not be built."""
    if engine.form == "engine":
        report = compile_engine(ctx, engine)
        if not report.built:
            return None, report
        return hashed(engine.name, ENGINE.path(ctx)), report
    model = chosen_variant(ctx, CHOICE.read(ctx))
    lacking = engine.missing()
    reason = f"not built: {lacking}" if lacking else "it loads the chosen bytes themselves"
    report = BuildReport(engine=engine.name, built=lacking is None, reason=reason)
    return model if report.built else None, report


def run(ctx: StepContext) -> Record:
    """Build the engine that ships, have it answer, and identify it.

    Raises:
        TunelineError: if the engine does not load its files or does not answer.
    """
    deployment = ctx.config.deployment
    engine = get_engine(deployment.engine)
    model, report = shipped(ctx, engine)
    if model is None:
        NOT_BUILT.write(ctx, report)
        return _record(ctx, f"{engine.name} {report.reason}", built=False)
    prompt = validation_rows(ctx, 1)[0].prompt
    with server_of(model, deployment) as server, server.client() as client:
        answer = client.chat(prompt, max_tokens=answer_limit(ctx.run))
        memory = server.memory_bytes()
    load_seconds, served = server.load_seconds, ServedSizes.of(server.request)
    choice = CHOICE.read(ctx)
    limits = {"max_batch_size": deployment.parallel, "max_total_tokens": deployment.context_tokens}
    stated = {
        "engine": engine.name,
        "version": engine.version(),
        **machine_identity(),
        "limits": limits,
        "served": served.as_stated(),
        "variant": choice.variant,
        "files": dict(model.files),
        "sha256": model.sha256,
        "load_seconds": round(load_seconds, 2),
        "memory_bytes": memory,
        "apart": None if choice.apart is None else choice.apart.model_dump(),
    }
    # What a built engine states of itself takes precedence over what was asked for.
    ENGINE_IDENTITY.write(ctx, EngineIdentity.model_validate({**stated, **report.identity}))
    packages, seen = audit_engine_packages(
        ctx, engine.interpreter(), engine.version().partition(" ")[0]
    )
    ctx.write_json(ENGINE_REPORT.name, {**report.model_dump(), "answered": answer.text})
    return _record(
        ctx,
        f"{engine.title} ({engine.version()}) loads the shipped bytes in {load_seconds:.1f} s and "
        f"answers; {seen}",
        built=True,
        more=packages,
    )


def _record(
    ctx: StepContext, summary: str, *, built: bool, more: Sequence[Measurement] = ()
) -> Record:
    engine = ctx.config.deployment.engine
    stated = [measure("built", built, "flag"), measure("engine", engine, "engine")]
    return ctx.record(summary, [*stated, *more])
