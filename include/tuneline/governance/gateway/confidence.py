"""Confidence: answers with their log-probabilities, and the threshold that follows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from math import ceil, floor
from pathlib import Path
from tempfile import TemporaryDirectory

from tuneline.artifacts.governance import (
    BY_HAND,
    CALIBRATION,
    Calibration,
    Confidence,
    Share,
    Threshold,
)
from tuneline.asking.asking import CHUNK, KeptAnswers, LocalModel, request_key
from tuneline.asking.models import candidate
from tuneline.asking.rows import answer_limit, validation_rows
from tuneline.asking.tasks import Task, judge, task_of
from tuneline.config.governance import FallbackConfig
from tuneline.data.tables.rows import Row
from tuneline.errors import UserError
from tuneline.run import Run
from tuneline.serving.client import ChatResult
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import ServedModel
from tuneline.serving.protocol import mean_logprob
from tuneline.statistics import wilson
from tuneline.step_context import StepContext


def calibrate(
    ctx: StepContext, model: ServedModel, target: FallbackConfig
) -> tuple[Calibration, list[Confidence]]:
    """Ask the validation rows, and set the thresholds."""
    rows = validation_rows(ctx, target.calibration_rows)
    task = task_of(ctx.config, [row.answer for row in rows])
    max_tokens = answer_limit(ctx.run)
    told = ask_for_confidence(ctx, model, rows, max_tokens)
    found = confidences(rows, told, task, target.stream_window_tokens)
    engine = f"{model.engine} {get_engine(model.engine).version()}"
    stated = {"sha256": model.sha256, "engine": engine}
    return thresholds(found, task, target, **stated, max_tokens=max_tokens), found


def thresholds(
    found: Sequence[Confidence],
    task: Task,
    target: FallbackConfig,
    *,
    sha256: str,
    engine: str,
    max_tokens: int,
) -> Calibration:
    """Return the thresholds that judged answers give."""
    caught, cost = target.caught_share, target.false_alarm_share
    window = target.stream_window_tokens
    judged = [one for one in found if one.whole is not None and one.beginning is not None]
    right = [one.right for one in judged]
    find = partial(find_threshold, right=right, caught_share=caught, false_alarm_share=cost)
    whole = find([one.whole or 0.0 for one in judged])
    stream = find([one.beginning or 0.0 for one in judged], tokens=window)
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

    None takes the run's setting.
    """
    run = Run.open(run_uri)
    given = {"caught_share": caught_share, "false_alarm_share": false_alarm_share}
    given["calibration_rows"] = rows
    stated = run.config.governance.fallback.model_dump()
    stated |= {key: value for key, value in given.items() if value is not None}
    try:
        target = FallbackConfig.model_validate(stated)
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


Told = tuple[str, list[float]]


def ask_for_confidence(
    ctx: StepContext, model: ServedModel, rows: Sequence[Row], max_tokens: int
) -> list[Told]:
    """Ask a model rows greedily; return each answer with its tokens' log-probabilities, in nats.

    Answers are kept for this run as they come, so that a step that is run again asks only what
    is missing.
    """
    subject = LocalModel(model, ctx.config.deployment)
    scope = request_key(ctx.run.uri, subject.identity(), "log-probabilities")
    keys = [request_key(list(map(dict, row.prompt)), max_tokens) for row in rows]
    with KeptAnswers.in_cache(scope) as kept:
        missing = [at for at, key in enumerate(keys) if key not in kept]
        if missing:
            batches = [missing[at : at + CHUNK] for at in range(0, len(missing), CHUNK)]
            with subject.client() as client:
                for batch in ctx.progress(batches, len(batches), "calibration, batches of rows"):

                    def keep(at: int, result: ChatResult, batch: list[int] = batch) -> None:
                        values = [token.logprob for token in result.logprobs]
                        kept.add(keys[batch[at]], json.dumps([result.text, values]))

                    client.complete_batch(
                        [rows[at].prompt for at in batch],
                        concurrency=subject.parallel,
                        max_tokens=max_tokens,
                        logprobs=True,
                        # llama.cpp sends twenty alternatives of each token otherwise.
                        extra={"top_logprobs": 1},
                        on_answer=keep,
                    )
        told = [json.loads(kept[key]) for key in keys]
    return [(str(text), list(values)) for text, values in told]


def confidences(
    rows: Sequence[Row], told: Sequence[Told], task: Task, window: int
) -> list[Confidence]:
    """Judge the answers."""
    answers, questions = [text for text, _ in told], [row.prompt for row in rows]
    judged = judge(task, answers, [row.answer for row in rows], questions=questions)
    return [
        Confidence(
            row_id=row.row_id,
            right=score == 1.0,
            tokens=len(values),
            whole=mean_logprob(values),
            beginning=mean_logprob(values[:window]),
        )
        for row, (_, values), score in zip(rows, told, judged.scores, strict=True)
    ]


# With fewer even all of them caught would leave the share between a half and one.
MIN_WRONG = 5


def find_threshold(
    confidences: Sequence[float],
    right: Sequence[bool],
    *,
    caught_share: float,
    false_alarm_share: float,
    tokens: int | None = None,
) -> Threshold:
    """Set a threshold, or say why none is set.

    `confidences` are mean log-probabilities in nats, of the first `tokens` of each answer or of
    whole ones; `caught_share` of the wrong answers has to be caught, and `false_alarm_share` of the
    right ones may be sent on.
    """
    pairs = list(zip(confidences, right, strict=True))
    good = sorted(value for value, is_right in pairs if is_right)
    bad = [value for value, is_right in pairs if not is_right]
    place = floor(false_alarm_share * (len(good) + 1))
    if lacking := _lacking(len(good), len(bad), false_alarm_share):
        return Threshold(tokens=tokens, reason=lacking)
    value = good[place - 1]
    caught = wilson(sum(one < value for one in bad), len(bad))
    alarms = _false_alarms(place, len(good))
    reason = (
        f"{caught.text()} of {len(bad)} wrong answers are caught for "
        f"{alarms.value:.3f} [{alarms.lower:.3f}, {alarms.upper:.3f}] of the right ones"
    )
    refused = ""
    if caught.value < caught_share:
        refused = f"; {caught_share:g} were to be caught"
    elif caught.lower <= alarms.value:
        refused = "; so few rows can't tell that from chance"
    elif value >= 0:
        refused = "; the model is wholly sure of its least sure answers"
    return Threshold(
        tokens=tokens,
        value=None if refused else value,
        caught=Share(value=caught.value, lower=caught.lower, upper=caught.upper),
        false_alarms=alarms,
        reason=reason + refused,
    )


def _lacking(good: int, bad: int, false_alarm_share: float) -> str:
    """Return what the rows lack for a threshold; empty if they are enough."""
    rows = good + bad
    if rows == 0:
        return "the engine states no log-probabilities"
    if bad == 0:
        return f"none of {rows} answers was wrong"
    if bad < MIN_WRONG:
        return f"only {bad} of {rows} answers were wrong, and {MIN_WRONG} are needed"
    if floor(false_alarm_share * (good + 1)) < 1:
        need = ceil(1 / false_alarm_share) - 1
        return f"only {good} answers were right, and {need} are needed"
    return ""


def _false_alarms(place: int, count: int) -> Share:
    """Return the share of further right answers below the `place`-th least sure of `count`."""
    from scipy.stats import beta

    lower, upper = beta.ppf([0.025, 0.975], place, count + 1 - place)
    return Share(value=place / (count + 1), lower=float(lower), upper=float(upper))
