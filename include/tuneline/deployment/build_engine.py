"""build_engine: build the engine that ships and identify it, or report the obstacle.

llama.cpp loads the shipped GGUF file itself, so its engine is that file, its limits and the
proof that it loads and answers. An engine that compiles (TensorRT-LLM) needs the GPU that it
will serve on; without one nothing is built, and `not_built.json` holds the reason and the exact
commands for a pod that has it. `identity.json` exists only for an engine that was built.
"""

from __future__ import annotations

from importlib.metadata import version

from tuneline.artifacts.deployment import (
    ENGINE,
    ENGINE_IDENTITY,
    NOT_BUILT,
    BuildReport,
    EngineIdentity,
)
from tuneline.artifacts.training import MERGED
from tuneline.config import DeploymentConfig
from tuneline.evidence import Record, measure
from tuneline.harness.rows import validation_rows
from tuneline.harness.served_models import candidate, serve
from tuneline.run import StepContext
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.base import BuildRequest
from tuneline.serving.engines.identity import machine_identity

# Room for an answer within the deployment's context, tokens.
ANSWER_TOKENS = 256


def limits_of(deployment: DeploymentConfig) -> dict[str, int]:
    """Return the limits that an engine is built for."""
    return {
        "max_batch_size": deployment.parallel,
        "max_total_tokens": deployment.context_tokens,
    }


def load_llama_cpp(ctx: StepContext) -> Record:
    """Load the shipped bytes in llama.cpp, have them answer, and identify them.

    Raises:
        TunelineError: if the engine does not load the file or does not answer.
    """
    shipped = candidate(ctx)
    prompt = validation_rows(ctx, 1)[0].prompt
    with serve(shipped.file.path, ctx.config) as server, server.client() as client:
        answer = client.chat(prompt, max_tokens=ctx.config.evaluation.max_new_tokens)
        load_seconds, memory = server.load_seconds, server.memory_bytes()
    identity = EngineIdentity.model_validate(
        {
            "engine": "llama_cpp",
            "version": f"xllamacpp {version('xllamacpp')}",
            **machine_identity(),
            "limits": limits_of(ctx.config.deployment),
            "variant": shipped.variant,
            "files": {"model.gguf": shipped.file.sha256},
            "load_seconds": round(load_seconds, 2),
            "memory_bytes": memory,
        }
    )
    ENGINE_IDENTITY.write(ctx, identity)
    report = {"engine": identity.engine, "model": identity.files, "answered": answer.text}
    ctx.write_json(f"{ENGINE.name}/engine.json", report)
    return _record(
        ctx,
        f"llama.cpp ({identity.version}) loads the shipped bytes in {load_seconds:.1f} s and "
        "answers",
        built=True,
    )


def build_from_checkpoint(ctx: StepContext) -> BuildReport:
    """Have another engine build from the merged checkpoint."""
    deployment = ctx.config.deployment
    total = deployment.context_tokens
    request = BuildRequest(
        model_dir=MERGED.fetch(ctx),
        out_dir=ENGINE.path(ctx),
        max_batch_size=deployment.parallel,
        max_input_tokens=max(1, total - min(ANSWER_TOKENS, total // 2)),
        max_total_tokens=total,
    )
    return get_engine(deployment.engine).build(request)


def _record(ctx: StepContext, summary: str, *, built: bool) -> Record:
    engine = ctx.config.deployment.engine
    return ctx.record(
        summary, [measure("built", built, "flag"), measure("engine", engine, "engine")]
    )


def run(ctx: StepContext) -> Record:
    """Build the engine that ships and identify it."""
    deployment = ctx.config.deployment
    if deployment.engine == "llama_cpp":
        return load_llama_cpp(ctx)
    ENGINE.path(ctx).mkdir()
    report = build_from_checkpoint(ctx)
    if not report.built:
        NOT_BUILT.write(ctx, report)
        return _record(ctx, f"{deployment.engine} {report.reason}", built=False)
    ctx.write_json(f"{ENGINE.name}/engine.json", report.model_dump())
    # Limits that the engine itself states take precedence.
    limits = {**limits_of(deployment), **report.identity.get("limits", {})}
    identity = EngineIdentity.model_validate({**report.identity, "limits": limits})
    ENGINE_IDENTITY.write(ctx, identity)
    return _record(ctx, f"{deployment.engine}: {report.reason}", built=True)
