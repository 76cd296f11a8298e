"""Compare the candidate with the released model: the bytes that serve now, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence

from tuneline.artifacts.evaluation import RELEASED_ANSWERS, ReleasedAnswer
from tuneline.artifacts.releases import released
from tuneline.asking.asking import ask_kept
from tuneline.asking.models import released_model
from tuneline.asking.tasks import Judged, judge, not_worse
from tuneline.data.tables.rows import Row
from tuneline.errors import UserError, first_line
from tuneline.evaluation.scoring.answer_tables import stated
from tuneline.evaluation.scoring.ledger import seen_by
from tuneline.evidence import Breach, Finding, Measurement, measure
from tuneline.statistics import NonInferiority
from tuneline.step_context import StepContext

_WORSE = "worse_than_released_by"


def compare_with_released(ctx: StepContext, rows: Sequence[Row], tuned: Judged) -> Finding:
    """Ask the released model the rows that it has not been trained on, and compare.

    A release that can't be served here leaves the comparison inconclusive; UserError if it has no
    model.
    """
    settings = ctx.config.evaluation.against_released
    release = released(ctx.run) if settings.enabled else None
    if release is None:
        off = "evaluation.against_released is switched off"
        why = "nothing is released yet" if settings.enabled else off
        known = [measure("compared_with_released", f"not applicable: {why}", "")]
        return Finding(known, f"not compared with a released model: {why}")
    seen = seen_by(ctx, release.version, rows)
    # Whoever labelled a row of production saw the release's answer and took or replaced it.
    unseen = [row.row_id not in seen.ids and row.served_by is None for row in rows]
    asked = [row for row, ours in zip(rows, unseen, strict=True) if ours]
    engine = release.manifest.engine or {}
    served = " ".join(str(engine.get(name, "")) for name in ("engine", "version")).strip()
    gone = len(seen.unknown)
    known = [
        measure("compared_with_released", release.version, "version"),
        measure("released_engine", served or None, ""),
        measure("rows_released_model_saw", len(seen.ids), "rows"),
        measure("rows_labelled_by_its_answer", sum(r.served_by is not None for r in rows), "rows"),
        measure("rows_compared_with_released", len(asked), "rows"),
        measure("earlier_trainings_without_rows", gone, "versions", "==", 0, on_breach="warn"),
    ]
    if not asked:
        return _undecided(
            known,
            settings.margin,
            f"the released version {release.version} was trained on every hold-out row, or people "
            "labelled them by its answers, so that nothing compares the two",
        )
    model = released_model(ctx, release)
    limits = [ctx.config.evaluation.max_new_tokens] * len(asked)
    try:
        # What the released bytes answered to the very same prompts before is taken.
        answers, cached = ask_kept(
            ctx, model, [row.prompt for row in asked], limits, "released model"
        )
    except UserError as error:
        return _undecided(
            known,
            settings.margin,
            f"the released version {release.version} can't answer here ({first_line(error)}), so "
            "that nothing compares the two; evaluate where it can be served, or set "
            "evaluation.against_released.enabled: false",
        )
    pairs = zip(asked, answers, strict=True)
    RELEASED_ANSWERS.write(
        ctx, (ReleasedAnswer(row_id=r.row_id, expected=r.answer, released=a) for r, a in pairs)
    )
    old = judge(tuned.task, answers, [row.answer for row in asked])
    found = not_worse(old, tuned.rows(unseen), settings.margin)
    versions = ", ".join(seen.unknown)
    doubt = f" (it may have seen some of them: the rows of {versions} are gone)" if gone else ""
    return Finding(
        [
            *known,
            measure("released_answers_from_cache", cached, "flag"),
            measure("released_metric", round(old.interval.value, 4), "share"),
            *difference_measurements(found, surely_unseen=not gone),
        ],
        _sentence(release.version, found) + doubt,
    )


def _undecided(known: list[Measurement], margin: float, why: str) -> Finding:
    undecided = measure(_WORSE, None, "share", "<=", margin, on_breach="inconclusive")
    return Finding([*known, undecided], why)


def difference_measurements(found: NonInferiority, *, surely_unseen: bool) -> list[Measurement]:
    """State the difference, whose lower end decides.

    Unless the released model has surely seen none of the rows, none fails by it: having seen them
    speaks for the released one.
    """
    # 0.0 - x and not -x: no loss shall read as 0.0, not as -0.0.
    loss, noise = round(0.0 - found.difference.lower, 4), round(found.difference.error, 4)
    proven = found.decision == "worse" and surely_unseen
    breach: Breach = "fail" if proven else "inconclusive"
    measured = [
        *stated("difference_to_released", found.difference),
        measure(_WORSE, loss, "share", "<=", found.margin, noise=noise, on_breach=breach),
        measure("only_released_right", found.lost, "rows"),
        measure("only_candidate_right", found.gained, "rows"),
    ]
    if found.decision == "undecided":
        measured.append(measure("rows_needed_to_decide", found.rows_needed, "rows"))
    return measured


def _sentence(version: str, found: NonInferiority) -> str:
    value, lower, margin = found.difference.value, found.difference.lower, found.margin
    against = (
        f"against the released version {version} on {found.rows} rows: {value:+.3f}, at the lower "
        f"end {lower:+.3f}"
    )
    if found.decision == "not worse":
        return f"{against}, which the margin of {margin:g} allows"
    if found.decision == "worse":
        return (
            f"{against}: worse than what serves now beyond chance, and a loss of more than the "
            f"margin of {margin:g} is not excluded"
        )
    return (
        f"{against}, beyond the margin of {margin:g}, yet it may be chance: about "
        f"{found.rows_needed} rows would decide"
    )
