"""Helper step: build the engine for the target and identify it, or say what stood in the way.

llama.cpp loads the shipped GGUF file itself, so its engine is that file, its
limits and the proof that it loads and answers. Engines that compile
(TensorRT-LLM) need the GPU they will serve on; without one nothing is built and
`not_built.json` holds the reason and the exact commands for a pod that has it.
`identity.json` exists only for an engine that was built.
"""

from __future__ import annotations

import json
from typing import Any

from tuneline.config import DeploymentConfig
from tuneline.evidence import Record, measure
from tuneline.harness.rows import validation_rows
from tuneline.harness.served_models import Candidate, candidate, serve
from tuneline.run import StepContext
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.base import BuildReport, BuildRequest
from tuneline.serving.engines.identity import machine_identity

IDENTITY, NOT_BUILT, ENGINE = "identity.json", "not_built.json", "engine/engine.json"
# A prompt of the deployment's context leaves room for an answer.
ANSWER_TOKENS = 256


def limits_of(deployment: DeploymentConfig) -> dict[str, int]:
    """The limits that an engine is built for."""
    return {
        "max_batch_size": deployment.parallel,
        "max_total_tokens": deployment.context_tokens,
    }


def llama_cpp_identity(shipped: Candidate, deployment: DeploymentConfig) -> dict[str, Any]:
    """What the llama.cpp engine is tied to."""
    from importlib.metadata import version

    return {
        "engine": "llama_cpp",
        "version": f"xllamacpp {version('xllamacpp')}",
        **machine_identity(),
        "limits": limits_of(deployment),
        "variant": shipped.variant,
        "files": {"model.gguf": shipped.file.sha256},
    }


def build_llama_cpp(ctx: StepContext) -> tuple[dict[str, Any], str]:
    """Load the shipped bytes in the engine and have them answer.

    Returns:
        The identity, and the answer.

    Raises:
        TunelineError: the engine does not load the file, or does not answer.
    """
    shipped = candidate(ctx)
    prompt = validation_rows(ctx, 1)[0].prompt
    with serve(shipped.file.path, ctx.config) as server, server.client() as client:
        answer = client.chat(prompt, max_tokens=ctx.config.evaluation.max_new_tokens)
        identity = llama_cpp_identity(shipped, ctx.config.deployment)
        identity["load_seconds"] = round(server.load_seconds, 2)
        identity["memory_bytes"] = server.memory_bytes()
    return identity, answer.text


def build_other(ctx: StepContext) -> BuildReport:
    """Have another engine build from the merged checkpoint."""
    deployment = ctx.config.deployment
    total = deployment.context_tokens
    request = BuildRequest(
        model_dir=ctx.input_dir("export_candidate", "merged"),
        out_dir=ctx.out / "engine",
        max_batch_size=deployment.parallel,
        max_input_tokens=max(1, total - min(ANSWER_TOKENS, total // 2)),
        max_total_tokens=total,
    )
    return get_engine(deployment.engine).build(request)


def run(ctx: StepContext) -> Record:
    """Build the engine that ships and identify it; never pretend."""
    engine = ctx.config.deployment.engine
    (ctx.out / "engine").mkdir()
    if engine == "llama_cpp":
        identity, answer = build_llama_cpp(ctx)
        _write(ctx, ENGINE, {"engine": engine, "model": identity["files"], "answered": answer})
        _write(ctx, IDENTITY, identity)
        return ctx.record(
            f"llama.cpp ({identity['version']}) loads the shipped bytes in "
            f"{identity['load_seconds']:.1f} s and answers",
            [measure("built", True, "flag"), measure("engine", engine, "engine")],
        )
    report = build_other(ctx)
    found = [measure("built", report.built, "flag"), measure("engine", engine, "engine")]
    document = report.to_dict()
    if not report.built:
        _write(ctx, NOT_BUILT, document)
        return ctx.record(f"{engine} {report.reason}", found)
    _write(ctx, ENGINE, document)
    _write(ctx, IDENTITY, {**report.identity, "limits": limits_of(ctx.config.deployment)})
    return ctx.record(f"{engine}: {report.reason}", found)


def _write(ctx: StepContext, name: str, document: object) -> None:
    (ctx.out / name).write_text(json.dumps(document, indent=1, ensure_ascii=False))
