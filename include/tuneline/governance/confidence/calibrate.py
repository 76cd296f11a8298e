"""Calibrate the confidence threshold of a run's shipped bytes on its validation rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tuneline.artifacts.governance import BY_HAND, CALIBRATION, Calibration, Confidence
from tuneline.config.governance import FallbackConfig
from tuneline.errors import UserError
from tuneline.governance.confidence.answers import ask_for_confidence, confidences
from tuneline.governance.confidence.threshold import find_threshold
from tuneline.harness.answers import Task, choose_task
from tuneline.harness.rows import validation_rows
from tuneline.harness.served_models import candidate
from tuneline.run import Run
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.base import ServedModel
from tuneline.step_context import StepContext


def calibrate(
    ctx: StepContext, model: ServedModel, target: FallbackConfig
) -> tuple[Calibration, list[Confidence]]:
    """Ask the validation rows, and set the thresholds.

    Args:
        ctx: the step.
        model: the shipped bytes.
        target: the shares to reach, the rows, and the window of streams.
    """
    rows = validation_rows(ctx, target.calibration_rows)
    config = ctx.config
    expected = [row.answer for row in rows]
    task = choose_task(
        config.evaluation.metric,
        config.data.label_field,
        expected,
        config.evaluation.numeric_tolerance,
    )
    max_tokens = config.evaluation.max_new_tokens
    told = ask_for_confidence(ctx, model, rows, max_tokens)
    found = confidences(rows, told, task, target.stream_window_tokens)
    engine = f"{model.engine} {get_engine(model.engine).version()}"
    return (
        thresholds(found, task, target, sha256=model.sha256, engine=engine, max_tokens=max_tokens),
        found,
    )


def thresholds(
    found: Sequence[Confidence],
    task: Task,
    target: FallbackConfig,
    *,
    sha256: str,
    engine: str,
    max_tokens: int,
) -> Calibration:
    """Return the thresholds that judged answers give.

    Args:
        found: the confidences.
        task: the rule by which the answers were judged.
        target: the shares to reach.
        sha256: hash of the bytes that answered.
        engine: the engine and its version.
        max_tokens: limit of an answer's length.
    """
    caught, cost = target.caught_share, target.false_alarm_share
    window = target.stream_window_tokens
    judged = [one for one in found if one.whole is not None and one.beginning is not None]
    right = [one.right for one in judged]
    means = [one.whole or 0.0 for one in judged]
    whole = find_threshold(means, right, caught_share=caught, false_alarm_share=cost)
    beginnings = [one.beginning or 0.0 for one in judged]
    stream = find_threshold(
        beginnings, right, caught_share=caught, false_alarm_share=cost, tokens=window
    )
    if window == 0:
        stream = stream.model_copy(update={"value": None, "reason": "streams are not judged"})
    if task.graded:
        why = f"the metric {task.name} is graded, so that no answer is right or wrong"
        whole, stream = (
            one.model_copy(update={"value": None, "reason": why}) for one in (whole, stream)
        )
    return Calibration(
        candidate_sha256=sha256,
        engine=engine,
        rows=len(found),
        wrong=sum(not one.right for one in found),
        max_tokens=max_tokens,
        caught_share=caught,
        false_alarm_share=cost,
        whole=whole,
        stream=stream,
    )


def by_hand(ctx: StepContext, model: ServedModel) -> Calibration | None:
    """Return what `tuneline calibrate` has set for these bytes, and note it among the inputs."""
    found = BY_HAND.find(ctx.run)
    if found is None or found.candidate_sha256 != model.sha256:
        return None
    BY_HAND.note(ctx)
    return found


def calibrate_run(
    run_uri: str, *, caught_share: float | None, false_alarm_share: float | None, rows: int | None
) -> Calibration:
    """Calibrate a run by hand, and keep the thresholds in it for the item `fallback`.

    Args:
        run_uri: the run.
        caught_share: share of wrong answers to catch; None takes the run's setting.
        false_alarm_share: share of right answers that may be sent on; None likewise.
        rows: validation rows, at most; None likewise.

    Raises:
        UserError: if the run has chosen no bytes to ship, or a share is none.
    """
    run = Run.open(run_uri)
    given = {
        "caught_share": caught_share,
        "false_alarm_share": false_alarm_share,
        "calibration_rows": rows,
    }
    stated = run.config.governance.fallback.model_dump()
    try:
        target = FallbackConfig.model_validate(
            stated | {key: value for key, value in given.items() if value is not None}
        )
    except ValueError as error:
        raise UserError(f"tuneline calibrate: {error}") from None
    with TemporaryDirectory(prefix="tuneline-calibrate-") as folder:
        out, quarantine, scratch = (Path(folder) / n for n in ("out", "quarantine", "scratch"))
        for place in (out, quarantine, scratch):
            place.mkdir()
        ctx = StepContext(run, CALIBRATION.step, out=out, quarantine=quarantine, scratch=scratch)
        found, _ = calibrate(ctx, candidate(ctx).model, target)
    BY_HAND.put(run, found)
    return found


def as_text(found: Calibration) -> str:
    """Return a calibration for a person to read."""
    lines = [f"{found.rows} validation rows, {found.wrong} answered wrongly, on {found.engine}"]
    for what, one in (("whole answers", found.whole), ("streams", found.stream)):
        limit = "no threshold" if one.value is None else f"below {one.value:.4f} nats"
        over = f" (first {one.tokens} tokens)" if one.tokens else ""
        lines.append(f"{what}{over}: {limit}: {one.reason}")
    return "\n".join(lines)
