"""base_regression: fine-tuning has not taken general ability away.

Method: base and candidate answer the same general questions, checked by rule or compared by their
likelihood, on the engine that ships, in looks (`forgetting/decision.py`). Before, the perplexity of
both on general texts is compared, paired by text. The base is that of the first release of the
model (`forgetting/pair.py`): what many nights lose together counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tuneline.asking.general_questions import Question, load_suite, paragraphs
from tuneline.asking.models import candidate
from tuneline.config import EvaluationConfig
from tuneline.errors import UserError
from tuneline.evaluation.forgetting.decision import (
    DEFAULT_LIMIT,
    MISS,
    CategoryRow,
    Limits,
    by_category,
    compare_texts,
    fails_early,
    judge,
    lost_categories,
    passes_early,
    plan_looks,
    questions_needed,
)
from tuneline.evaluation.forgetting.pair import Pair, Reply, find_origin
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.statistics import Paired, paired, share
from tuneline.step_context import StepContext

# A base that does not know more than this beyond chance has nothing that could be seen to be lost.
LEAST_ABOVE_CHANCE = 0.05


def limits_of(settings: EvaluationConfig) -> Limits:
    """Return the configured limits.

    UserError if the drop that is allowed is not smaller than the loss that must be seen.
    """
    drop = settings.max_regression or DEFAULT_LIMIT
    if drop >= settings.regression_to_see:
        raise UserError(
            f"evaluation.max_regression is {drop:g}, and a loss of {settings.regression_to_see:g} "
            "must be seen: what is allowed has to be smaller; raise evaluation.regression_to_see"
        )
    return Limits(drop, settings.max_category_regression, settings.regression_to_see)


def above_chance(questions: Sequence[Question], right: Sequence[bool]) -> float:
    """Return the share of right answers beyond that of guessing among the choices."""
    guessed = sum(1 / len(q.choices) if q.choices else 0.0 for q in questions)
    return (sum(right) - guessed) / len(questions)


def ask_in_looks(
    ctx: StepContext, pair: Pair, questions: Sequence[Question], limits: Limits, *, failed: bool
) -> tuple[list[Reply], list[Reply], str]:
    """Ask both models until more questions could not change the verdict, or none is left.

    `failed`: the model fails whatever it answers. Returns the replies of both, and why no more were
    asked; empty if all were.
    """
    base: list[Reply] = []
    tuned: list[Reply] = []
    for size in plan_looks(len(questions), ctx.config.evaluation.regression_first_look):
        ctx.log(f"general questions {len(base) + 1} to {size} of {len(questions)}")
        of_base, of_tuned = pair.answer(questions[len(base) : size])
        base, tuned = base + of_base, tuned + of_tuned
        flags = [r.right for r in base], [r.right for r in tuned]
        table = by_category(questions[:size], *flags)
        why = settled(paired(*flags), table, limits, failed=failed)
        if why and size < len(questions):
            return base, tuned, why
    return base, tuned, ""


def settled(result: Paired, table: Sequence[CategoryRow], limits: Limits, *, failed: bool) -> str:
    """Return why more questions are not needed; empty if they are."""
    if failed:
        return "the perplexity fails already"
    if fails_early(result, table, limits):
        return "a limit is broken beyond doubt"
    if passes_early(result, table, limits):
        return f"these exclude a loss of {limits.to_see:g} at {1 - MISS:.0%}"
    return ""


def summarise(
    measured: dict[str, Measurement],
    result: Paired,
    table: Sequence[CategoryRow],
    limits: Limits,
    *,
    base: str,
    tuned: str,
    against: str,
    chosen: int,
) -> str:
    """Say in one sentence whether general ability was kept, and what would have been seen."""
    asked = sum(row.questions for row in table)
    drop, detectable = measured["drop"], measured["detectable_drop"]
    judged = "within" if drop.ok else "more than"
    by_chance = "" if drop.ok or drop.on_breach == "fail" else ", which chance could explain"
    lost = lost_categories(table, limits.category)
    worst = min(table, key=lambda row: row.change)
    categories = (
        f"lost beyond chance: {', '.join(lost)}"
        if lost
        else f"no category lost more than {limits.category:g} beyond chance"
    )
    needed = questions_needed(result, asked, limits)
    more = "" if detectable.ok else f" ({max(needed - asked, 1)} more questions would be needed)"
    return (
        f"of {asked} general questions ({chosen} by the likelihood of their choices) the tuned "
        f"model answers {tuned} right and {against} "
        f"{base}; the drop of {drop.value} is {judged} the allowed {drop.limit}{by_chance}; "
        f"{categories} (the weakest, {worst.category}: {worst.change:+.2f}); a loss of "
        f"{detectable.value} would have been seen with a probability of 80 %{more}"
    )


def run(ctx: StepContext) -> Evidence:
    """Ask both models the general questions and compare their answers."""
    settings = ctx.config.evaluation
    limits = limits_of(settings)
    questions = load_suite()[: settings.regression_questions]
    chosen, origin = candidate(ctx), find_origin(ctx)
    pair = Pair(ctx, chosen, origin)
    losses = pair.text_losses(paragraphs()[: settings.regression_texts])
    texts = compare_texts(losses, settings.max_perplexity_ratio)
    of_base, of_tuned, why = ask_in_looks(ctx, pair, questions, limits, failed=texts.failed)
    asked = questions[: len(of_base)]
    base, tuned = [r.right for r in of_base], [r.right for r in of_tuned]
    result, table = paired(base, tuned), by_category(asked, base, tuned)
    ctx.write_json("categories.json", [{**vars(r), "change": round(r.change, 4)} for r in table])
    with (ctx.out / "answers.jsonl").open("w", encoding="utf-8") as out:
        for question, ours, theirs in zip(asked, of_base, of_tuned, strict=True):
            entry = {
                "id": question.id,
                "category": question.category,
                "prompt": question.prompt,
                "base": ours.text,
                "base_right": ours.right,
                "tuned": theirs.text,
                "tuned_right": theirs.right,
            }
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")
    base_share, tuned_share = share(base), share(tuned)
    judged = judge(result, table, len(asked), len(questions), limits)
    sentence = summarise(
        {m.name: m for m in judged},
        result,
        table,
        limits,
        base=base_share.text(),
        tuned=tuned_share.text(),
        against=origin.name,
        chosen=pair.chosen,
    )
    left, above = len(questions) - len(asked), round(above_chance(asked, base), 4)
    unasked = f"; {left} more were not asked, since {why}" if why else ""
    least = LEAST_ABOVE_CHANCE
    return ctx.conclude(
        f"{sentence}; {texts.sentence}{unasked}",
        [
            *judged,
            *texts.measurements,
            *origin.measurements(),
            measure("questions", len(asked), "questions"),
            measure("questions_planned", len(questions), "questions"),
            measure("base_share", round(base_share.value, 4), "share"),
            measure("tuned_share", round(tuned_share.value, 4), "share"),
            measure("base_above_chance", above, "share", ">=", least, on_breach="warn"),
            measure("choices_by_likelihood", pair.likelihood, "flag"),
            measure("questions_by_likelihood", pair.chosen, "questions"),
            measure("base_answers_from_cache", pair.cached, "flag"),
            measure("candidate_sha256", chosen.model.sha256, "sha256"),
        ],
    )
