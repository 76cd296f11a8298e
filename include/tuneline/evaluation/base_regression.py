"""base_regression: fine-tuning has not taken more general ability away than is allowed.

Method: base and candidate answer the same general questions, checked by rule or compared by their
likelihood, on the engine that ships, in looks (`forgetting/decision.py`). Questions that a training
row holds are left out. Before, the perplexity of both on general texts is compared, paired by text.
The base is that of the first release of the model (`forgetting/pair.py`): what many nights lose
together counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tuneline.asking.general_questions import Question, held_by, load_suite, paragraphs
from tuneline.asking.models import candidate
from tuneline.asking.rows import dataset_rows, of_split
from tuneline.config import EvaluationConfig
from tuneline.data.tables.rows import TRAIN
from tuneline.errors import UserError
from tuneline.evaluation.forgetting.decision import (
    DEFAULT_LIMIT,
    LEAST_QUESTIONS,
    CategoryRow,
    Limits,
    Look,
    by_category,
    chance_of_losses,
    compare_texts,
    fails_early,
    judge,
    loss_of,
    lost_categories,
    passes_early,
    plan_looks,
    questions_needed,
    weakest,
)
from tuneline.evaluation.forgetting.pair import Pair, Reply, find_origin
from tuneline.evidence import Evidence, Measurement, conclude, measure
from tuneline.statistics import TAIL, Bounds, Paired, paired, share
from tuneline.step_context import StepContext

# A base that does not know more than this beyond chance has nothing that could be seen to be lost.
LEAST_ABOVE_CHANCE = 0.05
# A dataset that holds more of the questions than this trains on what measures it.
MOST_IN_TRAINING = 0.05
# Of the answers that a base wrote: shares right at least, and cut and wrong at most, where its
# limits of tokens did not decide.
LEAST_WRITTEN, MOST_CUT = 0.2, 0.2


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


def unseen(ctx: StepContext, suite: Sequence[Question]) -> list[Question]:
    """Return the questions that no training row holds; UserError if there is none."""
    rows = of_split(dataset_rows(ctx), TRAIN)
    held = held_by(suite, [turn["content"] for row in rows for turn in row.messages])
    if len(held) == len(suite):
        raise UserError("the training rows hold all general questions; take these rows out")
    return [question for question in suite if question.id not in held]


def comparable(
    questions: Sequence[Question], base: Sequence[Reply], tuned: Sequence[Reply]
) -> tuple[list[Question], list[Reply], list[Reply]]:
    """Leave out the answers that were written, if the base was interrupted while it thought.

    Few of its written answers are right then, or many were cut before they were, and the tuned
    model gains there beyond chance; such gains must not pay for losses of choices.
    """
    triples = list(zip(questions, base, tuned, strict=True))
    written = [(a, b) for _, a, b in triples if a.cut is not None]
    known = sum(a.right for a, _ in written)
    interrupted = sum(bool(a.cut) and not a.right for a, _ in written)
    gained = sum(b.right > a.right for a, b in written)
    by_chance = chance_of_losses(gained, known + gained - sum(b.right for _, b in written)) > TAIL
    decided = known < LEAST_WRITTEN * len(written) or interrupted > MOST_CUT * len(written)
    if decided and not by_chance and len(written) < len(triples):
        triples = [triple for triple in triples if triple[1].cut is None]
    return [q for q, _, _ in triples], [a for _, a, _ in triples], [b for _, _, b in triples]


def ask_in_looks(
    ctx: StepContext, pair: Pair, questions: Sequence[Question], limits: Limits, *, failed: bool
) -> tuple[list[Reply], list[Reply], Look, str]:
    """Ask both models until more questions could not change the verdict, or none is left.

    `failed`: the model fails whatever it answers. Returns the replies of both, the last look, and
    why no more were asked; empty if all were.
    """
    base: list[Reply] = []
    tuned: list[Reply] = []
    looks = plan_looks(len(questions), ctx.config.evaluation.regression_first_look)
    for look in looks:
        size = look.questions
        ctx.log(f"general questions {len(base) + 1} to {size} of {len(questions)}")
        of_base, of_tuned = pair.answer(questions[len(base) : size])
        base, tuned = base + of_base, tuned + of_tuned
        counted, ours, theirs = comparable(questions[:size], base, tuned)
        flags = [r.right for r in ours], [r.right for r in theirs]
        table = by_category(counted, *flags)
        counting = look._replace(questions=len(counted))
        why = settled(paired(*flags), table, counting, limits, failed=failed)
        if why and size < len(questions):
            return base, tuned, look, why
    return base, tuned, looks[-1], ""


def settled(
    result: Paired, table: Sequence[CategoryRow], look: Look, limits: Limits, *, failed: bool
) -> str:
    """Return why more questions are not needed; empty if they are."""
    if failed:
        return "the perplexity fails already"
    if fails_early(result, table, limits):
        return "a limit is broken beyond doubt"
    if passes_early(result, table, look, limits):
        return f"these exclude a loss of {limits.to_see:g} at {1 - look.tail:.1%}"
    return ""


def summarise(
    measured: dict[str, Measurement],
    result: Paired,
    loss: Bounds,
    limits: Limits,
    *,
    asked: int,
    base: str,
    tuned: str,
    against: str,
    chosen: int,
) -> str:
    """Say in one sentence which loss of general ability was shown, and what is not excluded."""
    drop = measured["drop"]
    judged = "within" if drop.ok else "more than"
    by_chance = "" if drop.ok or drop.on_breach == "fail" else ", which chance could explain"
    ends = f"{100 * loss.lower:.1f} to {100 * loss.upper:.1f} points"
    shown = f"a loss of {ends} is shown" if loss.lower > 0 else f"no loss is shown (95 %: {ends})"
    if not measured["drop_upper"].ok:
        needed = questions_needed(result, asked, limits)
        more = f" (some {needed} questions could)" if needed and needed > asked else ""
        shown += f", and one of {100 * limits.to_see:g} is not excluded{more}"
    return (
        f"of {asked} general questions ({chosen} by the likelihood of their choices) the tuned "
        f"model answers {tuned} right and {against} {base}; the drop of {drop.value} is {judged} "
        f"the allowed {drop.limit}{by_chance}: {shown}"
    )


def of_categories(table: Sequence[CategoryRow], limit: float) -> str:
    """Say which categories were lost, what the others would have to lose, and which don't count."""
    lost, worst = lost_categories(table, limit), weakest(table)
    drops = [max(limit, row.smallest_drop_named or 1.0) for row in table if row.judged]
    few = ", ".join(f"{row.category} ({row.questions})" for row in table if not row.judged)
    said = f"lost beyond chance: {', '.join(lost)}" if lost else "no category is named as lost"
    if drops and not lost:
        said += f", which takes a drop of {min(drops):.2f} to {max(drops):.2f}"
    named = f"; not judged, with fewer than {LEAST_QUESTIONS} questions: {few}" if few else ""
    return f"{said} (the weakest, {worst.category}: {worst.change:+.2f}){named}"


def write_answers(
    ctx: StepContext, asked: Sequence[Question], of_base: Sequence[Reply], of_tuned: Sequence[Reply]
) -> None:
    """Write both answers to each question."""
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


def run(ctx: StepContext) -> Evidence:
    """Ask both models the general questions and compare their answers."""
    settings = ctx.config.evaluation
    limits = limits_of(settings)
    suite = load_suite()
    free = unseen(ctx, suite)
    held, most_held = len(suite) - len(free), int(MOST_IN_TRAINING * len(suite))
    questions = free[: settings.regression_questions]
    chosen, origin = candidate(ctx), find_origin(ctx)
    pair = Pair(ctx, chosen, origin)
    losses = pair.text_losses(paragraphs()[: settings.regression_texts])
    texts = compare_texts(losses, settings.max_perplexity_ratio)
    failed = conclude(texts.measurements) == "fail"
    of_base, of_tuned, look, why = ask_in_looks(ctx, pair, questions, limits, failed=failed)
    asked = questions[: look.questions]
    write_answers(ctx, asked, of_base, of_tuned)
    counted, *replies = comparable(asked, of_base, of_tuned)
    base, tuned = ([r.right for r in side] for side in replies)
    result, table = paired(base, tuned), by_category(counted, base, tuned)
    dropped, look = len(asked) - len(counted), look._replace(questions=len(counted))
    ctx.write_json("categories.json", [{**vars(r), "change": round(r.change, 4)} for r in table])
    base_share, tuned_share = share(base), share(tuned)
    judged = judge(result, table, look, len(questions) - dropped, limits)
    sentence = summarise(
        {m.name: m for m in judged},
        result,
        loss_of(result, look),
        limits,
        asked=len(asked),
        base=base_share.text(),
        tuned=tuned_share.text(),
        against=origin.name,
        chosen=pair.chosen,
    )
    parts = [sentence, of_categories(table, limits.category), texts.sentence]
    if held:
        parts.append(f"{held} are in the training rows and did not count")
    if dropped:
        parts.append(f"{dropped} with written answers do not count: the base was interrupted")
    if why:
        parts.append(f"{len(questions) - len(asked)} more were not asked, since {why}")
    above, least_known = round(above_chance(counted, base), 4), LEAST_ABOVE_CHANCE
    return ctx.conclude(
        "; ".join(parts),
        [
            *judged,
            *texts.measurements,
            *origin.measurements(),
            measure("questions_in_training", held, "questions", "<=", most_held),
            measure("questions", len(asked), "questions"),
            measure("questions_not_comparable", dropped, "questions"),
            measure("questions_planned", len(questions), "questions"),
            measure("base_share", round(base_share.value, 4), "share"),
            measure("tuned_share", round(tuned_share.value, 4), "share"),
            measure("base_above_chance", above, "share", ">=", least_known, on_breach="warn"),
            measure("choices_by_likelihood", pair.likelihood, "flag"),
            measure("questions_by_likelihood", pair.chosen, "questions"),
            measure("base_answers_from_cache", pair.cached, "flag"),
            measure("candidate_sha256", chosen.model.sha256, "sha256"),
        ],
    )
