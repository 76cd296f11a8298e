"""Compare the candidate with the released model: the bytes that serve now, on the same rows.

What is not shown to be not worse stays unreleased, in every profile: too few rows show nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

from tuneline.artifacts.evaluation import RELEASED_ANSWERS, ReleasedAnswer
from tuneline.artifacts.releases import released
from tuneline.asking.asking import ask_kept
from tuneline.asking.models import released_model
from tuneline.asking.tasks import Judged, not_worse
from tuneline.data.tables.rows import Row
from tuneline.errors import UserError, first_line
from tuneline.evaluation.scoring.answer_tables import stated
from tuneline.evaluation.scoring.ledger import seen_by
from tuneline.evidence import Finding, measure
from tuneline.serving.engines.engine import ServedModel
from tuneline.statistics import NonInferiority
from tuneline.step_context import StepContext

_WORSE = "worse_than_released_by"


def compare_with_released(
    ctx: StepContext, candidate: ServedModel, rows: Sequence[Row], judged: Sequence[Judged]
) -> Finding:
    """Ask the released model the rows that it has not been trained on, and compare.

    A release that can't be served here leaves the comparison undecided, which fails; one with the
    candidate's bytes is not asked. UserError if it has no model.

    Args:
        judged: the candidate's answers by the metric, then by each of their text fields.
    """
    settings = ctx.config.evaluation.against_released
    release = released(ctx.run) if settings.enabled else None
    if release is None:
        off = "evaluation.against_released is switched off"
        why = "nothing is released yet" if settings.enabled else off
        known = [measure("compared_with_released", f"not applicable: {why}", "")]
        return Finding(known, f"not compared with a released model: {why}")
    version, engine = release.version, release.manifest.engine or {}
    served = " ".join(str(engine.get(name, "")) for name in ("engine", "version")).strip()
    model = released_model(ctx, release)
    if model.sha256 == candidate.sha256:
        same = measure(_WORSE, 0.0, "share", "<=", settings.margin)
        found = Finding([same], f"its bytes are those of the released version {version}")
    else:
        found = _compared(ctx, version, model, rows, judged)
    known = [
        measure("compared_with_released", version, "version"),
        measure("released_engine", served or None, ""),
    ]
    return Finding([*known, *found.measurements], found.sentence)


def _compared(
    ctx: StepContext,
    version: str,
    model: ServedModel,
    rows: Sequence[Row],
    judged: Sequence[Judged],
) -> Finding:
    settings, seen = ctx.config.evaluation.against_released, seen_by(ctx, version, rows)
    # Whoever labelled a row of production saw the release's answer and took or replaced it.
    unseen = [row.row_id not in seen.ids and row.served_by is None for row in rows]
    asked, gone = list(compress(rows, unseen)), len(seen.unknown)
    known = [
        measure("rows_released_model_saw", len(seen.ids), "rows"),
        measure("rows_labelled_by_its_answer", sum(r.served_by is not None for r in rows), "rows"),
        measure("rows_compared_with_released", len(asked), "rows"),
        measure("earlier_trainings_without_rows", gone, "versions", "==", 0, on_breach="warn"),
    ]
    undecided = measure(_WORSE, None, "share", "<=", settings.margin)
    if not asked:
        why = f"the released version {version} was trained on every hold-out row, or people"
        why += " labelled them by its answers, so that nothing compares the two"
        return Finding([*known, undecided], why)
    limits = [ctx.config.evaluation.max_new_tokens] * len(asked)
    try:
        # What the released bytes answered to the very same prompts before is taken.
        prompts = [row.prompt for row in asked]
        old, cached = ask_kept(ctx, model, prompts, limits, "released model")
    except UserError as error:
        return Finding(
            [*known, undecided],
            f"the released version {version} can't answer here ({first_line(error)}), so "
            "that nothing compares the two; evaluate where it can be served, or set "
            "evaluation.against_released.enabled: false",
        )
    pairs = zip(asked, old, strict=True)
    RELEASED_ANSWERS.write(
        ctx, (ReleasedAnswer(row_id=r.row_id, expected=r.answer, released=a) for r, a in pairs)
    )
    own = [each.rows(unseen) for each in judged]
    margins = [settings.margin] + [settings.text_margin] * len(own[1:])
    found = [_difference(each, old, margin) for each, margin in zip(own, margins, strict=True)]
    changed = sum(a != b for a, b in zip(own[0].answers, old, strict=True))
    versions = ", ".join(seen.unknown)
    doubt = f" (it may have seen some of them: the rows of {versions} are gone)" if gone else ""
    return Finding(
        [
            *known,
            measure("released_answers_from_cache", cached, "flag"),
            measure("answers_that_changed", changed, "rows"),
            *(measured for each in found for measured in each.measurements),
        ],
        f"against the released version {version} {changed} of {len(asked)} answers changed: "
        f"{'; '.join(each.sentence for each in found)}{doubt}",
    )


def _difference(tuned: Judged, answers: Sequence[str], margin: float) -> Finding:
    """State the difference of a metric, whose lower end decides."""
    old, task = tuned.other(answers), tuned.task
    found = not_worse(old, tuned, margin)
    prefix = f"{task.field}." if task.graded and task.field else ""
    # 0.0 - x and not -x: no loss shall read as 0.0, not as -0.0.
    loss, noise = round(0.0 - found.difference.lower, 4), round(found.difference.error, 4)
    measured = [
        measure(f"{prefix}released_metric", round(old.interval.value, 4), "share"),
        *stated(f"{prefix}difference_to_released", found.difference),
        measure(prefix + _WORSE, loss, "share", "<=", margin, noise=noise),
        measure(f"{prefix}only_released_right", found.lost, "rows"),
        measure(f"{prefix}only_candidate_right", found.gained, "rows"),
    ]
    if found.decision == "undecided":
        measured.append(measure(f"{prefix}rows_needed_to_decide", found.rows_needed, "rows"))
    return Finding(measured, f"{task.name} {_sentence(found)}")


def _sentence(found: NonInferiority) -> str:
    against = (
        f"{found.difference.value:+.3f} on {found.rows} rows, at the lower end "
        f"{found.difference.lower:+.3f}"
    )
    if found.decision == "not worse":
        return f"{against}, which the margin of {found.margin:g} allows"
    if found.decision == "worse":
        return f"{against}: worse than what serves now by more than the margin of {found.margin:g}"
    return (
        f"{against}: these rows do not decide whether it is worse by more than the margin of "
        f"{found.margin:g}, so the released version stays; about {found.rows_needed} rows would "
        "decide"
    )
