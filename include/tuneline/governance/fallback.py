"""fallback: on an error or low confidence another model answers.

The chain is the one that the release will be served with, its confidence threshold set here on
validation rows. Faults are planted in it behind the real gateway. Where nothing was released yet,
the base model takes the place of the previous release, and the item warns.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from tuneline.artifacts.governance import CALIBRATION, CONFIDENCES, Calibration, Confidence
from tuneline.artifacts.releases import released
from tuneline.asking.models import ALIAS, candidate, released_model, server_of, untuned
from tuneline.asking.rows import answer_limit, answer_room, validation_rows
from tuneline.config import read_policy
from tuneline.config.governance import FallbackConfig
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.governance.gateway.confidence import by_hand, calibrate
from tuneline.governance.gateway.faults import (
    NO_FAULT,
    REQUESTS,
    UNJUDGED,
    Chain,
    Client,
    FaultReport,
    Prompts,
)
from tuneline.serving.engines.engine import ServedModel
from tuneline.serving.following.chain import ChainSettings, low_confidence, served_chain
from tuneline.serving.gateway.process import GatewayProcess
from tuneline.statistics import Z95
from tuneline.step_context import StepContext

SECOND_ID = "second"
BASE = "base"
# How far beyond the gateway's own limits a client of the trial waits.
_PATIENCE = 2.0


@dataclass(frozen=True)
class Second:
    """The model behind the release."""

    name: str
    model: ServedModel
    described: str
    served: bool  # False where it only takes the place of a previous release


def second_model(ctx: StepContext) -> Second:
    """Return the previous release, or the base model where nothing was released yet."""
    release = released(ctx.run)
    if release is None:
        what = (
            "the base model, which takes the place of a previous release (nothing was released yet)"
        )
        return Second(BASE, untuned(ctx), what, served=False)
    name = f"{ctx.config.name}-{release.version}"
    what = f"the previous release {release.version}"
    return Second(name, released_model(ctx, release), what, served=True)


def refusal(settings: FallbackConfig) -> str | None:
    """Return why the policy of this image leaves the larger model out, None if it does not.

    Whoever starts a run names its host and its key, so they don't decide what is sent there.
    """
    policy = read_policy()
    why = settings.refusal(policy.content.allowed_hosts, policy.content.upstream_keys)
    return why and f"{why} ({policy.where})"


def reachable(settings: FallbackConfig) -> tuple[FallbackConfig, str | None]:
    """Return the settings without a larger model that can't be tried here, and why it can't."""
    why = refusal(settings)
    key = settings.larger.api_key_env if settings.larger else None
    if why is None and key is not None and not os.environ.get(key):
        why = f"the larger model was not tried, since {key} is not set here"
    return (settings if why is None else settings.model_copy(update={"larger": None})), why


def prompts_of(ctx: StepContext, found: Sequence[Confidence], calibration: Calibration) -> Prompts:
    """Choose validation rows whose answers are clearly above the thresholds, and below.

    Without thresholds every row will do, and none is unsure.
    """
    rows = {row.row_id: row for row in validation_rows(ctx)}
    limit = calibration.whole.value
    told = [one for one in found if one.whole is not None] or list(found)
    order = sorted(told, key=lambda one: min(one.whole or 0.0, one.beginning or 0.0))
    sure = order[::-1]
    unsure = [] if limit is None else [o for o in order if o.whole is not None and o.whole < limit]
    unsure.sort(key=lambda one: one.whole or 0.0)

    def asked(chosen: Sequence[Confidence]) -> list[list[dict[str, str]]]:
        return [rows[one.row_id].prompt for one in chosen if one.row_id in rows]

    known = asked(sure)
    repeated = [known[at % len(known)] for at in range(max(REQUESTS, len(known)))]
    return Prompts(repeated, asked(unsure))


def judge(reports: Sequence[FaultReport], *, served: int) -> list[Measurement]:
    """Judge the reports by what the chain must do."""
    ended = sum(r.ended for r in reports) / sum(r.requests for r in reports)
    fell_back = [r for r in reports if r.fault not in (NO_FAULT, "both_gone")]
    silent = [r for r in fell_back if r.expected != "error" and not r.reasons]
    return [
        measure("models_to_fall_back_to", served, "models", ">=", 1, on_breach="warn"),
        measure("ended_share", ended, "share", "==", 1.0),
        *(
            measure(f"{r.fault}_as_expected", r.as_expected, "requests", "==", r.requests)
            for r in reports
        ),
        measure("reasons_missing", len(silent), "faults", "==", 0),
        measure("faults_not_planted", sum(not r.planted for r in reports), "faults", "==", 0),
    ]


def inject_faults(
    ctx: StepContext,
    shipped: ServedModel,
    second: Second,
    calibration: Calibration,
    prompts: Prompts,
) -> list[FaultReport]:
    """Serve the chain and plant the faults."""
    deployment, settings = ctx.config.deployment, reachable(ctx.config.governance.fallback)[0]
    name, limits = ctx.config.name, (answer_limit(ctx.run), answer_room(ctx.run))
    with ExitStack() as stack:
        engines = [
            stack.enter_context(server_of(model, deployment, alias=alias, parallel=2))
            for model, alias in ((shipped, ALIAS), (second.model, SECOND_ID))
        ]
        names = (f"{name}-{ctx.run.run_id}", second.name)
        entries = [
            engine.upstream(upstream, context_tokens=deployment.context_tokens)
            for engine, upstream in zip(engines, names, strict=True)
        ]
        chain = served_chain(name, entries, ChainSettings(settings, calibration))
        # What a model writes beyond its answer's end is doubtful, which is not what is tried there.
        models = [chain.model, {**chain.model, "id": UNJUDGED, "low_confidence": None}]
        gateway = stack.enter_context(
            GatewayProcess(ctx.scratch / "gateway", upstreams=chain.upstreams, models=models)
        )
        under_trial = Chain(
            Client(gateway, name, *limits, patience=settings.budget_s * _PATIENCE),
            primary=engines[0],
            second=engines[1],
            names=chain.model["chain"],
        )
        return list(under_trial.run(prompts))


def run(ctx: StepContext) -> Evidence:
    """Set the threshold, plant the faults, and judge who answered."""
    shipped = candidate(ctx).model
    second = second_model(ctx)
    settings = ctx.config.governance.fallback
    calibration, found = calibrate(ctx, shipped, settings)
    calibration = by_hand(ctx, shipped) or calibration
    CALIBRATION.write(ctx, calibration)
    CONFIDENCES.write(ctx, found)
    prompts = prompts_of(ctx, found, calibration)
    reports = inject_faults(ctx, shipped, second, calibration, prompts)
    ctx.write_json("faults.json", [asdict(r) for r in reports])
    tried, untried = reachable(settings)
    larger = settings.larger is not None and refusal(settings) is None
    whole = calibration.whole
    return ctx.conclude(
        f"{sum(r.as_expected for r in reports)} of {sum(r.requests for r in reports)} requests "
        f"ended as they must under {len(reports) - 1} planted faults; behind the release stands "
        f"{second.described}"
        + (", then the larger model" if tried.larger else "")
        + (f"; {untried}" if untried else "")
        + (
            f"; answers below {whole.value:.3f} nats fall back"
            if whole.value is not None
            else "; no answer falls back for low confidence"
        )
        + f": {whole.reason}",
        [
            *judge(reports, served=int(second.served) + int(larger)),
            *threshold_measurements(calibration, settings.stream_window_tokens),
            measure("candidate_sha256", shipped.sha256, "sha256"),
        ],
        rows={CONFIDENCES.name: len(found)},
    )


def threshold_measurements(calibration: Calibration, window: int) -> list[Measurement]:
    """State the thresholds, what they catch and what they cost."""
    limits, whole = low_confidence(calibration, window) or {}, calibration.whole
    name = "min_mean_logprob"
    stated = [
        measure("calibration_rows", calibration.rows, "rows"),
        measure("calibration_wrong", calibration.wrong, "rows"),
        # Without a threshold nothing shows that unsure answers fall back.
        measure(name, limits.get(name), "nats", "<=", 0.0, on_breach="inconclusive"),
        measure("stream_min_mean_logprob", limits.get("stream_min_mean_logprob"), "nats"),
    ]
    for name, share in (("caught_share", whole.caught), ("false_alarm_share", whole.false_alarms)):
        if share is not None:
            error = (share.upper - share.lower) / (2 * Z95)
            stated.append(measure(name, round(share.value, 4), "share", noise=round(error, 4)))
    return stated
