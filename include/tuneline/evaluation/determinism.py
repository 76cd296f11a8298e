"""determinism: the same prompt at temperature 0 gives the same answer, however it is served.

Method: validation prompts are asked alone, in batches of other companions, and after a restart of
the server; each answer is compared with the first one alone (in a batch engines sum in another
order). The verdict is on the parsed structure where the task is structured, since callers act on
that. Without a flip, n prompts show with 95 % confidence that a share of 0.05^(1/n) of prompts at
least answers the same (Clopper and Pearson, 1934). Flips name the first token that differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict

from tuneline.asking.models import candidate
from tuneline.asking.rows import answer_limit, validation_rows
from tuneline.data.tables.rows import Row
from tuneline.errors import TunelineError, first_line
from tuneline.evaluation.repeated_prompts.answers import (
    ServedForm,
    View,
    first_flip,
    flipped_in,
    label_reach,
    other_forms,
    shows_label,
    tokens_of,
    view_of,
)
from tuneline.evaluation.repeated_prompts.asking import (
    ALONE,
    BATCHED,
    MODES,
    RESTARTED,
    RepeatedAnswers,
    RepeatPlan,
    Repeats,
    ask,
)
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import ServedModel
from tuneline.statistics import share_of
from tuneline.step_context import StepContext

# Probability that the share of equal answers is below its stated lower end.
TAIL = 0.05


def prompts_for(share: float) -> int:
    """Return the prompts that show a share, between 0 and 1, if none of them flips."""
    return math.ceil(math.log(TAIL) / math.log(share))


def identical_share(
    repeats: Sequence[Repeats], mode: str, view: Callable[[str], str] = str
) -> float:
    """Return the share of repeats that equal their reference, by the `view` that is compared."""
    same = [
        view(text) == view(entry.alone[0]) for entry in repeats for text in entry.compared(mode)
    ]
    return round(sum(same) / len(same), 4)


def judge(repeats: Sequence[Repeats], min_share: float, view: View) -> list[Measurement]:
    """Compare the structure of answers with the share allowed, in each way they were asked."""
    found = []
    for mode in _asked(repeats):
        same = identical_share(repeats, mode, view)
        found += [
            measure(f"identical_structure_{mode}", same, "share", ">=", min_share),
            measure(f"identical_bytes_{mode}", identical_share(repeats, mode), "share"),
        ]
    return found


def _asked(repeats: Sequence[Repeats]) -> list[str]:
    return [mode for mode in MODES if any(entry.compared(mode) for entry in repeats)]


def lower_end(repeats: Sequence[Repeats], mode: str, view: View) -> float:
    """Return the share of prompts that answer the same at least, with 95 % confidence."""
    same = len(repeats) - len(flipped_in(repeats, mode, view))
    return share_of(same, len(repeats), TAIL).lower


def shown(repeats: Sequence[Repeats], view: View, to_show: float) -> list[Measurement]:
    """State the share of prompts that never flip, and compare its lower end with what to show."""
    # A limit of four digits, so that the bound of just enough prompts is not below it.
    limit, found = round(to_show, 4), []
    for mode in _asked(repeats):
        same = len(repeats) - len(flipped_in(repeats, mode, view))
        least, name = round(lower_end(repeats, mode, view), 4), f"prompts_that_repeat_{mode}"
        at_least = f"{name}_at_least"
        found += [
            measure(name, round(same / len(repeats), 4), "share"),
            measure(at_least, least, "share", ">=", limit, on_breach="inconclusive"),
        ]
    return found


def _collect(
    ctx: StepContext, model: ServedModel, rows: Sequence[Row], plan: RepeatPlan, file: str
) -> RepeatedAnswers:
    """Ask every row in every way; the answers are written also if the server dies."""
    answers = RepeatedAnswers(rows)
    try:
        ask(ctx, model, plan, answers)
    finally:
        ctx.write_json(file, [asdict(entry) for entry in answers.repeats()])
    return answers


def _explain(
    ctx: StepContext, repeats: Sequence[Repeats], view: View
) -> tuple[list[str], list[Measurement]]:
    """Return the first token that differs, in a sentence and as measurements, if one does."""
    rows = {row_id for mode in MODES for row_id in flipped_in(repeats, mode, view)}
    flip = first_flip(repeats, view, tokens_of(ctx)) if rows else None
    if flip is None:
        return [], []
    ctx.write_json("flips.json", {"first": asdict(flip)})
    return [f"the first to differ: {flip.text()}"], [
        measure("prompts_that_flip", len(rows), "prompts"),
        measure("first_differing_row", flip.row_id, "row"),
        measure("first_differing_token", flip.token, "token"),
        measure("first_token_was", flip.was, "token"),
        measure("first_token_became", flip.became, "token"),
    ]


def _compare_forms(
    ctx: StepContext,
    forms: Sequence[ServedForm],
    shipped: Sequence[Repeats],
    rows: Sequence[Row],
    plan: RepeatPlan,
) -> tuple[list[str], list[Measurement]]:
    """Ask the other forms of the model; return what they show and what was not tried."""
    said, found = [], []
    not_tried = [f"{form.name} ({form.why_not})" for form in forms if form.model is None]
    config = ctx.config
    for form in forms:
        if form.model is None:
            continue
        ctx.log(f"asking the form {form.name}, which does not ship")
        try:
            answers = _collect(ctx, form.model, rows, plan, f"repeats_{form.name}.json")
        except TunelineError as error:
            not_tried.append(f"{form.name} ({first_line(error)})")
            continue
        view = view_of(config.data.label_field, answers.cut)
        repeats = answers.repeats()
        least = min(identical_share(repeats, mode, view) for mode in _asked(repeats))
        limit = config.evaluation.min_identical_share
        name = f"identical_structure_{form.name}"
        found.append(measure(name, least, "share", ">=", limit, on_breach="warn"))
        pairs = zip(shipped, repeats, strict=True)
        same = sum(view(ours.alone[0]) == view(theirs.alone[0]) for ours, theirs in pairs)
        found.append(measure(f"same_as_shipped_{form.name}", round(same / len(rows), 4), "share"))
        said.append(
            f"{form.name} repeats itself in {least:.0%} and answers as the shipped form in "
            f"{same} of {len(rows)}"
        )
    found.append(measure("forms_not_tried", ", ".join(not_tried) or "none", "forms"))
    if not_tried:
        said.append(f"not tried: {', '.join(not_tried)}")
    return said, found


_WAYS = {ALONE: "alone", BATCHED: "in batches of {}", RESTARTED: "after a restart"}


def _finding(repeats: Sequence[Repeats], view: View, plan: RepeatPlan, title: str) -> str:
    """State what the answers show, and no more than their interval supports."""
    asked = _asked(repeats)
    ways = [_WAYS[mode].format(plan.parallel) for mode in asked]
    counts = [len(flipped_in(repeats, mode, view)) for mode in asked]
    bounds = [lower_end(repeats, mode, view) for mode in asked]
    begin = (
        f"{len(repeats)} prompts asked {plan.repeats} times each of {title}, up to "
        f"{plan.max_tokens} tokens of each answer compared: "
    )

    def percent(share: float) -> str:
        return f"{math.floor(share * 1000) / 10:g} %"

    if not any(counts):
        return (
            f"{begin}the structure of no answer changed {', '.join(ways)}, which shows with 95 % "
            f"confidence that at least {percent(min(bounds))} of prompts keep theirs when asked so"
        )
    return begin + "; ".join(
        f"{count} changed {way} (at least {percent(least)} keep their structure)"
        for way, count, least in zip(ways, counts, bounds, strict=True)
    )


def plan_of(ctx: StepContext, rows: Sequence[Row], field: str | None) -> RepeatPlan:
    """Return how rows are repeated: through the label of each, at least."""
    settings, limit = ctx.config.evaluation, answer_limit(ctx.run)
    # The limit is that of the longest answer, so that this share of it reaches every label.
    through = max(label_reach(row.answer, field) for row in rows) if field else 0.0
    reach = max(settings.determinism_tokens or limit, math.ceil(through * limit))
    return RepeatPlan(
        settings.determinism_repeats,
        parallel=max(2, ctx.config.deployment.parallel),
        max_tokens=min(limit, reach),
    )


def run(ctx: StepContext) -> Evidence:
    """Repeat prompts of the validation split against servers of the shipped bytes."""
    settings = ctx.config.evaluation
    wanted = settings.determinism_prompts or prompts_for(settings.identical_share_to_show)
    rows = validation_rows(ctx, wanted, need=2)
    chosen, field = candidate(ctx), ctx.config.data.label_field
    plan = plan_of(ctx, rows, field)
    answers = _collect(ctx, chosen.model, rows, plan, "repeats.json")
    repeats = answers.repeats()
    view = view_of(field, answers.cut)
    told = sum(
        not field or text not in answers.cut or shows_label(text, field)
        for text in (entry.alone[0] for entry in repeats)
    )
    flips, of_flips = _explain(ctx, repeats, view)
    forms = other_forms(ctx, chosen, wanted=settings.determinism_forms == "all")
    others, of_forms = _compare_forms(ctx, forms, repeats, rows, plan)
    title = get_engine(chosen.model.engine).title
    to_show = settings.identical_share_to_show
    enough = prompts_for(to_show)
    few = [f"to show {to_show:.0%} takes {enough} prompts without a flip"]
    return ctx.conclude(
        "; ".join(
            [_finding(repeats, view, plan, title), *flips, *few * (len(rows) < enough), *others]
        ),
        [
            *judge(repeats, settings.min_identical_share, view),
            *shown(repeats, view, to_show),
            measure("prompts", len(rows), "prompts"),
            measure("repeats", settings.determinism_repeats, "repeats"),
            measure("tokens_compared", plan.max_tokens, "tokens"),
            measure("labels_compared", told, "prompts", ">=", len(rows), on_breach="inconclusive"),
            *of_flips,
            *of_forms,
            measure("engine", chosen.model.engine, "engine"),
            measure("candidate_sha256", chosen.model.sha256, "sha256"),
        ],
    )
