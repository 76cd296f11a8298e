"""`fallback`: on error or low confidence another model answers.

Proves it by injected faults, through the real gateway and real engines: the primary is
killed, hangs, and answers with low confidence; each time the request must be answered by
the second model of the chain, and the ledger must say why. The second model is the
previous release, or the base model where nothing was released yet.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneline.evidence import Evidence, Measurement, measure
from tuneline.governance.release.manifest import read_release
from tuneline.harness.rows import trial_prompts
from tuneline.harness.served_models import base_gguf
from tuneline.run import StepContext
from tuneline.serving.client.chat_protocol import Messages
from tuneline.serving.engines.llama_cpp.engine import LlamaServer
from tuneline.serving.gateway.process import Answer, GatewayProcess

REQUESTS_PER_FAULT = 4
MODEL = "candidate"
# A primary that hangs is left after this long; real answers here take under a second.
HANG_SECONDS = 8.0
# A log-probability that no answer reaches: the low-confidence path must fire.
IMPOSSIBLE_CONFIDENCE = -1e-9


@dataclass(frozen=True)
class FaultReport:
    """What became of the requests under one injected fault."""

    fault: str
    requests: int
    answered: int
    by_fallback: int
    reasons: list[str]


def summarise(fault: str, answers: Sequence[Answer]) -> FaultReport:
    """Count who answered and why."""
    good = [a for a in answers if a.ok]
    return FaultReport(
        fault,
        len(answers),
        len(good),
        sum(a.served_by == "fallback" for a in good),
        sorted({a.fallback_reason for a in good if a.fallback_reason}),
    )


def judge(reports: Sequence[FaultReport]) -> list[Measurement]:
    """Hold the reports against what a fallback must do.

    Args:
        reports: one for each injected fault, and one named `none` without.
    """
    faulty = [r for r in reports if r.fault != "none"]
    calm = next(r for r in reports if r.fault == "none")
    answered = sum(r.answered for r in faulty) / sum(r.requests for r in faulty)
    return [
        measure("answered_share", answered, "share", "==", 1.0),
        *(
            measure(f"{r.fault}_by_fallback", r.by_fallback, "requests", "==", r.requests)
            for r in faulty
        ),
        measure("reasons_missing", sum(not r.reasons for r in faulty), "faults", "==", 0),
        # A good answer may fall short of the confidence now and then; not all of them.
        measure("calm_by_candidate", calm.requests - calm.by_fallback, "requests", ">=", 1),
    ]


def second_model(ctx: StepContext) -> tuple[Path, str]:
    """The model to fall back to: the previous release, else the base model."""
    store, name = ctx.run.store, ctx.config.name
    release = read_release(store, name)
    if release and release["version"] != ctx.run.run_id:
        path = ctx.scratch / "previous.gguf"
        key = f"models/{name}/{release['version']}/model.gguf"
        ref = store.get_file(key, path)
        ctx.inputs["previous_release"] = ref
        return path, f"the previous release {release['version']}"
    return base_gguf(ctx).path, "the base model (nothing was released yet)"


def _ask(gateway: GatewayProcess, prompts: Sequence[Messages]) -> list[Answer]:
    return [gateway.chat(MODEL, prompt, max_tokens=16) for prompt in prompts]


def run(ctx: StepContext) -> Evidence:
    """Inject the faults one after the other."""
    config = ctx.config
    primary_path = ctx.input("production_quantization", "model.gguf")
    fallback_path, described = second_model(ctx)
    prompts = trial_prompts(ctx, REQUESTS_PER_FAULT)
    size: dict[str, Any] = {"parallel": 2, "ctx": config.deployment.context_tokens}
    reports: list[FaultReport] = []
    with (
        LlamaServer(primary_path, alias=MODEL, **size) as primary,
        LlamaServer(fallback_path, alias="second", **size) as second,
    ):
        chain: dict[str, Any] = {
            "upstreams": [
                {
                    "name": "primary",
                    "base_url": f"{primary.base_url}/v1",
                    "model": MODEL,
                    "answer_timeout_s": HANG_SECONDS,
                },
                {"name": "fallback", "base_url": f"{second.base_url}/v1", "model": "second"},
            ],
            "models": [{"id": MODEL, "chain": ["primary", "fallback"]}],
        }
        unsure = [
            {**chain["models"][0], "low_confidence": {"min_mean_logprob": IMPOSSIBLE_CONFIDENCE}}
        ]
        sure = [
            {
                **chain["models"][0],
                "low_confidence": {"min_mean_logprob": config.governance.min_confidence},
            }
        ]
        with GatewayProcess(ctx.scratch / "low", **{**chain, "models": unsure}) as gateway:
            reports.append(summarise("low_confidence", _ask(gateway, prompts)))
        with GatewayProcess(ctx.scratch / "faults", **{**chain, "models": sure}) as gateway:
            reports.append(summarise("none", _ask(gateway, prompts)))
            primary.signal(signal.SIGSTOP)
            reports.append(summarise("hang", _ask(gateway, prompts[:1])))
            primary.signal(signal.SIGCONT)
            primary.kill()
            reports.append(summarise("killed", _ask(gateway, prompts)))
    (ctx.out / "faults.json").write_text(json.dumps([asdict(r) for r in reports], indent=1))
    calm = next(r for r in reports if r.fault == "none")
    faulty = [r for r in reports if r.fault != "none"]
    return ctx.conclude(
        f"{sum(r.answered for r in faulty)} of {sum(r.requests for r in faulty)} requests under "
        f"{len(faulty)} injected faults were answered, {sum(r.by_fallback for r in faulty)} by "
        f"{described}; without a fault {calm.requests - calm.by_fallback} of {calm.requests} by "
        "the candidate; a larger foundation model was not tried",
        [*judge(reports), measure("min_confidence", config.governance.min_confidence, "nats")],
    )
