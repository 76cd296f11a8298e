"""Compare the candidate with the released model: the bytes that serve now, on the same rows.

What is not shown to be not worse stays unreleased, in every profile: too few rows show nothing. A
run that drift started has to be better on the days that drifted, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from operator import or_

from tuneline.artifacts.evaluation import RELEASED_ANSWERS, ReleasedAnswer
from tuneline.artifacts.releases import released
from tuneline.asking.asking import Answer, ask_kept
from tuneline.asking.models import released_model
from tuneline.asking.rows import answer_limit
from tuneline.asking.tasks import Judged, not_worse, rows_needed
from tuneline.data.tables.rows import Row
from tuneline.errors import UserError, first_line
from tuneline.evaluation.scoring.answer_tables import judge_interrupted, stated
from tuneline.evaluation.scoring.ledger import SeenRows, seen_by
from tuneline.evidence import Breach, Finding, Rule, measure
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import ServedModel
from tuneline.statistics import Bounds, NonInferiority, agresti_min, share_of
from tuneline.step_context import StepContext

_WORSE = "worse_than_released_by"
# Error of "better" and of "worse" on the days that drifted, each.
_ERROR = 0.02


def compare_with_released(
    ctx: StepContext, candidate: ServedModel, rows: Sequence[Row], judged: Sequence[Judged]
) -> Finding:
    """Ask the released model the rows that it has not been trained on, and compare.

    A release that can't be served here leaves the comparison undecided, which fails; one with the
    candidate's bytes is not asked. UserError if it has no model.

    Args:
        judged: the candidate's answers by the metric, then by each other part.
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
    known = [
        measure("compared_with_released", version, "version"),
        measure("released_engine", served or None, ""),
    ]
    model = released_model(ctx, release)
    if model.sha256 == candidate.sha256:
        same = measure(_WORSE, 0.0, "share", "<=", settings.margin)
        found = [Finding([same], f"its bytes are those of the released version {version}")]
        own = judged[0].rows([ctx.config.data.drifted(row.day) for row in rows])
        found += _on_drifted_days(ctx, own, own.answers)
    else:
        found = _compared(ctx, version, model, rows, judged)
    known += [measured for each in found for measured in each.measurements]
    return Finding(known, "; ".join(each.sentence for each in found))


def asked_of_released(
    ctx: StepContext, candidate: ServedModel, rows: Sequence[Row]
) -> tuple[ServedModel, list[Row]] | None:
    """Return the released model and the rows that it is asked; None if it is not, or can't be."""
    release = released(ctx.run) if ctx.config.evaluation.against_released.enabled else None
    if release is None or get_engine(release.engine).missing():
        return None
    model, (_, fair, late) = released_model(ctx, release), _comparable(ctx, release.version, rows)
    asked = list(compress(rows, map(or_, fair, late)))
    return None if model.sha256 == candidate.sha256 else (model, asked)


def _comparable(
    ctx: StepContext, version: str, rows: Sequence[Row]
) -> tuple[SeenRows, list[bool], list[bool]]:
    """Return what a release has seen, and the rows that compare it: all, those of drifted days."""
    seen = seen_by(ctx, version, rows)
    unseen = [row.row_id not in seen.ids for row in rows]
    # Whoever labelled a row of production saw the release's answer and took or replaced it.
    fair = [new and row.served_by is None for row, new in zip(rows, unseen, strict=True)]
    late = [new and ctx.config.data.drifted(row.day) for row, new in zip(rows, unseen, strict=True)]
    return seen, fair, late


def _compared(
    ctx: StepContext,
    version: str,
    model: ServedModel,
    rows: Sequence[Row],
    judged: Sequence[Judged],
) -> list[Finding]:
    settings = ctx.config.evaluation.against_released
    seen, fair, late = _comparable(ctx, version, rows)
    asked, gone = list(compress(rows, map(or_, fair, late))), len(seen.unknown)
    known = [
        measure("rows_released_model_saw", len(seen.ids), "rows"),
        measure("rows_labelled_by_its_answer", sum(r.served_by is not None for r in rows), "rows"),
        measure("rows_compared_with_released", sum(fair), "rows"),
        measure("earlier_trainings_without_rows", gone, "versions", "==", 0, on_breach="warn"),
    ]
    undecided = measure(_WORSE, None, "share", "<=", settings.margin)
    try:
        old, cached = _ask(ctx, model, asked)
        texts, prompts = [old[row.row_id] for row in asked], [row.prompt for row in asked]
        own = judged[0].rows(list(map(or_, fair, late)))
        known += judge_interrupted(
            ctx, "released", model, prompts=prompts, answers=texts, tuned=own
        )
    except UserError as error:
        why = f"the released version {version} can't answer here ({first_line(error)}), so that "
        why += "nothing compares the two; evaluate where it can be served, or set "
        why += "evaluation.against_released.enabled: false"
        nothing = judged[0].rows([False] * len(rows))
        return [Finding([*known, undecided], why), *_on_drifted_days(ctx, nothing, [])]
    given = [[old[row.row_id] for row in compress(rows, keep)] for keep in (fair, late)]
    found = _on_drifted_days(ctx, judged[0].rows(late), given[1])
    if not given[0]:
        why = f"the released version {version} was trained on every hold-out row, or people"
        why += " labelled them by its answers, so that nothing compares the two"
        return [Finding([*known, undecided], why), *found]
    known.append(measure("released_answers_from_cache", cached, "flag"))
    main = _not_worse(ctx, [each.rows(fair) for each in judged], given[0])
    versions = ", ".join(seen.unknown)
    doubt = f" (it may have seen some of them: the rows of {versions} are gone)" if gone else ""
    said = f"against the released version {version} {main.sentence}{doubt}"
    return [Finding([*known, *main.measurements], said), *found]


def _ask(
    ctx: StepContext, model: ServedModel, rows: Sequence[Row]
) -> tuple[dict[str, Answer], bool]:
    """Return the released model's answers by row id, and True if all of them were kept before."""
    limits = [answer_limit(ctx.run)] * len(rows)
    # What the released bytes answered to the very same prompts before is taken.
    old, cached = ask_kept(ctx, model, [row.prompt for row in rows], limits, "released model")
    pairs = list(zip(rows, old, strict=True))
    RELEASED_ANSWERS.write(
        ctx, (ReleasedAnswer(row_id=r.row_id, expected=r.answer, released=a) for r, a in pairs)
    )
    return {row.row_id: answer for row, answer in pairs}, cached


def _not_worse(ctx: StepContext, judged: Sequence[Judged], answers: Sequence[str]) -> Finding:
    """Compare the metric and each other part with the released model's answers."""
    settings = ctx.config.evaluation.against_released
    margins = [settings.margin] + [settings.text_margin] * len(judged[1:])
    found = [
        _difference(each, answers, by)
        for each, by in zip(judged, margins, strict=True)
        if each.scores
    ]
    changed = sum(a != b for a, b in zip(judged[0].answers, answers, strict=True))
    measured = [m for each in found for m in each.measurements]
    return Finding(
        [measure("answers_that_changed", changed, "rows"), *measured],
        f"{changed} of {len(answers)} answers changed: "
        f"{'; '.join(each.sentence for each in found)}",
    )


def _on_drifted_days(ctx: StepContext, tuned: Judged, answers: Sequence[str]) -> list[Finding]:
    """Judge whether the candidate is better on the reviewed rows of the days that drifted.

    It has to win more than half of the rows that one of both alone has right (exact sign test).
    Who accepted a row took the release's answer, which makes that harder to show. So texts, which
    are then the release's word for word, are not compared.
    """
    days, tail = ctx.config.data.drifted_days, min(_ERROR, tuned.tail)
    if days is None:
        return []
    pairs = list(zip(tuned.other(answers).units, tuned.units, strict=True))
    won, lost, rows = sum(b > a for a, b in pairs), sum(a > b for a, b in pairs), len(pairs)
    if tuned.task.graded:
        won = lost = rows = 0
    found = share_of(won, won + lost, tail) if won + lost else Bounds(0.5, 0.0, 1.0)
    undecided: Breach = "inconclusive" if ctx.config.profile == "production" else "warn"
    breach: Breach = "fail" if found.upper < 0.5 else undecided
    lower = round(found.lower, 4)
    shown = measure("wins_on_drifted_days_at_least", lower, "share", ">", 0.5, on_breach=breach)
    told, needed = "shows that it is better", 0
    if breach == "fail":
        told = "shows that it is worse"
    elif not shown.ok:
        # Where it does not look better, more than there are, and as many as can show it at all.
        better = agresti_min(lost, won, rows, tail) if won > lost else None
        more_held = better and rows_needed(better, rows, 0.0, tail)
        needed = 2 * max(math.ceil(-math.log2(tail)), more_held or rows + 1)
        told = f"does not show that it is better; about {needed} reviewed rows would, if it is"
    return [
        Finding(
            [
                measure("drifted_days", f"{days[0]}..{days[1]}", ""),
                measure("rows_of_drifted_days", rows, "rows"),
                measure("only_released_right_on_drifted_days", lost, "rows"),
                measure("only_candidate_right_on_drifted_days", won, "rows"),
                shown,
                measure("reviewed_rows_needed", needed or None, "rows"),
            ],
            f"of {rows} held-out rows of the drifted days {days[0]} to {days[1]} it alone has "
            f"{won} right and the released version alone {lost}, which {told}",
        )
    ]


def _difference(tuned: Judged, answers: Sequence[str], margin: float) -> Finding:
    """State the difference of a metric, whose lower end decides."""
    old, task = tuned.other(answers), tuned.task
    found = not_worse(old, tuned, margin)
    prefix, undecided = task.prefix, found.decision == "undecided"
    # Of many short parts some are always undecided; the metric has to be shown.
    ruled: tuple[Rule, float] | tuple[()] = ("<=", margin)
    if undecided and prefix and (tuned.alike or not task.free_text):
        ruled = ()
    # 0.0 - x and not -x: no loss shall read as 0.0, not as -0.0.
    loss, noise = round(0.0 - found.difference.lower, 4), round(found.difference.error, 4)
    measured = [
        measure(f"{prefix}released_metric", round(old.interval.value, 4), "share"),
        *stated(f"{prefix}difference_to_released", found.difference),
        measure(prefix + _WORSE, loss, "share", *ruled, noise=noise),
        measure(f"{prefix}only_released_right", found.lost, "rows"),
        measure(f"{prefix}only_candidate_right", found.gained, "rows"),
    ]
    if undecided:
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
