"""fallback: on an error or low confidence another model answers.

Faults are injected into a chain of real engines behind the real gateway: the primary answers
with low confidence, hangs, and is killed. Each time the second model of the chain must answer,
and the gateway must state why. The second model is the previous release, or the base model
where nothing was released yet.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tuneline.artifacts.releases import released
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.harness.rows import trial_prompts
from tuneline.harness.served_models import (
    ALIAS,
    candidate,
    released_model,
    server_of,
    untuned,
)
from tuneline.run import StepContext
from tuneline.serving.client.chat_protocol import Messages
from tuneline.serving.engines.base import ServedModel
from tuneline.serving.engines.engine_server import EngineServer
from tuneline.serving.gateway.process import Answer, GatewayProcess

REQUESTS_PER_FAULT = 4
MODEL_ID = ALIAS
SECOND_ID = "second"
NO_FAULT = "none"
# A primary that hangs is left after this long; real answers here take under a second.
HANG_SECONDS = 8.0
# A log-probability that no answer reaches, so that the low-confidence path must be taken.
IMPOSSIBLE_CONFIDENCE = -1e-9


@dataclass(frozen=True)
class FaultReport:
    """Outcome of the requests under one injected fault.

    Attributes:
        fault: its name; `none` for the requests without a fault.
        requests: requests that were sent.
        answered: those that got an answer.
        by_fallback: those that the second model answered.
        reasons: reasons for a fallback that the gateway stated.
    """

    fault: str
    requests: int
    answered: int
    by_fallback: int
    reasons: list[str]


def summarise(fault: str, answers: Sequence[Answer]) -> FaultReport:
    """Count the answers by the model that gave them."""
    good = [a for a in answers if a.ok]
    return FaultReport(
        fault,
        len(answers),
        len(good),
        sum(a.served_by == "fallback" for a in good),
        sorted({a.fallback_reason for a in good if a.fallback_reason}),
    )


def split_reports(reports: Sequence[FaultReport]) -> tuple[FaultReport, list[FaultReport]]:
    """Return the report without a fault, and those with one."""
    calm = next(r for r in reports if r.fault == NO_FAULT)
    return calm, [r for r in reports if r.fault != NO_FAULT]


def judge(reports: Sequence[FaultReport]) -> list[Measurement]:
    """Judge the reports by what a fallback must do.

    Args:
        reports: one for each injected fault, and one named `none` without.
    """
    calm, faulty = split_reports(reports)
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


def second_model(ctx: StepContext) -> tuple[ServedModel, str]:
    """Return the model to fall back to and its description."""
    release = released(ctx.run)
    if release is None:
        return untuned(ctx), "the base model (nothing was released yet)"
    return released_model(ctx, release), f"the previous release {release.version}"


def _gateway(
    ctx: StepContext,
    folder: str,
    primary: EngineServer,
    second: EngineServer,
    min_mean_logprob: float,
) -> GatewayProcess:
    """Return a gateway with a chain of two running servers."""
    upstreams = [
        primary.upstream("primary", answer_timeout_s=HANG_SECONDS),
        second.upstream("fallback"),
    ]
    model = {
        "id": MODEL_ID,
        "chain": ["primary", "fallback"],
        "low_confidence": {"min_mean_logprob": min_mean_logprob},
    }
    return GatewayProcess(ctx.scratch / folder, upstreams=upstreams, models=[model])


def inject_faults(
    ctx: StepContext, shipped: ServedModel, second_model: ServedModel
) -> list[FaultReport]:
    """Serve both models and inject the faults one after the other.

    Args:
        ctx: the step.
        shipped: the shipped bytes.
        second_model: the model to fall back to.
    """
    deployment = ctx.config.deployment
    prompts = trial_prompts(ctx, REQUESTS_PER_FAULT)
    reports: list[FaultReport] = []

    def ask(gateway: GatewayProcess, fault: str, asked: Sequence[Messages] = prompts) -> None:
        answers = [gateway.chat(MODEL_ID, prompt, max_tokens=16) for prompt in asked]
        reports.append(summarise(fault, answers))

    with (
        server_of(shipped, deployment, alias=MODEL_ID, parallel=2) as primary,
        server_of(second_model, deployment, alias=SECOND_ID, parallel=2) as second,
    ):
        with _gateway(ctx, "low", primary, second, IMPOSSIBLE_CONFIDENCE) as gateway:
            ask(gateway, "low_confidence")
        confidence = ctx.config.governance.min_confidence
        with _gateway(ctx, "faults", primary, second, confidence) as gateway:
            ask(gateway, NO_FAULT)
            primary.signal(signal.SIGSTOP)
            ask(gateway, "hang", prompts[:1])
            primary.signal(signal.SIGCONT)
            primary.kill()
            ask(gateway, "killed")
    return reports


def run(ctx: StepContext) -> Evidence:
    """Inject the faults and judge who answered."""
    shipped = candidate(ctx).model
    second, described = second_model(ctx)
    reports = inject_faults(ctx, shipped, second)
    ctx.write_json("faults.json", [asdict(r) for r in reports])
    calm, faulty = split_reports(reports)
    min_confidence = ctx.config.governance.min_confidence
    return ctx.conclude(
        f"{sum(r.answered for r in faulty)} of {sum(r.requests for r in faulty)} requests under "
        f"{len(faulty)} injected faults were answered, {sum(r.by_fallback for r in faulty)} by "
        f"{described}; without a fault {calm.requests - calm.by_fallback} of {calm.requests} by "
        "the candidate; a larger foundation model was not tried",
        [
            *judge(reports),
            measure("min_confidence", min_confidence, "nats"),
            measure("candidate_sha256", shipped.sha256, "sha256"),
        ],
    )
