"""base_regression: fine-tuning has not taken general ability away.

Method: base and candidate answer the same general questions, whose answers can be checked by
rule, through the same server. The drop is a paired difference (Agresti and Min, 2005). Unless
a limit is configured, the drop may be two standard errors of that difference: a model that
lost nothing then fails about one time in forty. A configured limit tighter than the noise
would decide by chance and is refused. The base is that of the first release of the model
(`forgetting/origin.py`): what many nights lose together counts, not what the last one lost.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from tuneline.evaluation.forgetting.origin import find_origin
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.harness.asking import ask, ask_kept
from tuneline.harness.general_questions import Question, check_answer, load_questions
from tuneline.harness.intervals import Paired, paired, share
from tuneline.harness.served_models import candidate, untuned
from tuneline.run import StepContext

# Standard errors that a drop may have by chance.
NOISE_FACTOR = 2.0
# With a larger detectable drop the questions are too few to see a loss that would matter.
MAX_DETECTABLE_DROP = 0.15


@dataclass(frozen=True)
class CategoryRow:
    """The share of right answers of both models in one category."""

    category: str
    questions: int
    base: float
    tuned: float

    @property
    def change(self) -> float:
        """The share of the candidate minus that of the base."""
        return self.tuned - self.base


def choose_questions(questions: Sequence[Question], count: int | None) -> list[Question]:
    """Return `count` questions, taken from each category in turn; None takes every one."""
    if count is None or count >= len(questions):
        return list(questions)
    seen: Counter[str] = Counter()
    places = []
    for question in questions:
        places.append(seen[question.category])
        seen[question.category] += 1
    ordered = sorted(zip(places, questions, strict=True), key=itemgetter(0))
    return [question for _, question in ordered][:count]


def by_category(
    questions: Sequence[Question], base: Sequence[bool], tuned: Sequence[bool]
) -> list[CategoryRow]:
    """Return the share of right answers of both models in each category."""
    table = []
    for category in sorted({question.category for question in questions}):
        at = [number for number, q in enumerate(questions) if q.category == category]
        shares = (sum(flags[number] for number in at) / len(at) for flags in (base, tuned))
        table.append(CategoryRow(category, len(at), *shares))
    return table


def judge(result: Paired, max_regression: float | None) -> list[Measurement]:
    """Measure the drop and compare it with the allowed one.

    Args:
        result: the paired difference, tuned minus base.
        max_regression: the configured limit; None derives it from the noise.

    Raises:
        UserError: if the configured limit is tighter than the noise.
    """
    noise = result.difference.error
    detectable = NOISE_FACTOR * noise
    allowed = detectable if max_regression is None else max_regression
    # 0.0 - x and not -x: no drop shall read as 0.0, not as -0.0.
    drop = round(0.0 - result.difference.value, 4)
    return [
        measure(
            "drop",
            drop,
            "share",
            "<=",
            round(allowed, 4),
            noise=round(noise, 4),
            tolerance=allowed,
        ),
        measure(
            "detectable_drop",
            round(detectable, 4),
            "share",
            "<=",
            MAX_DETECTABLE_DROP,
            on_breach="warn",
        ),
        measure("only_base_right", result.only_first, "questions"),
        measure("only_tuned_right", result.only_second, "questions"),
        measure("mcnemar_p", round(result.p_value, 6), "p"),
    ]


def summarise(
    drop: Measurement, table: Sequence[CategoryRow], base: str, tuned: str, against: str
) -> str:
    """Say in one sentence whether general ability was kept.

    Args:
        drop: the measurement that decides.
        table: the categories, at least one.
        base: share and interval of the base, as text.
        tuned: share and interval of the candidate, as text.
        against: the base, as text.
    """
    questions = sum(row.questions for row in table)
    worst = min(table, key=lambda row: row.change)
    judged = "within" if drop.ok else "more than"
    return (
        f"of {questions} general questions the tuned model answers {tuned} right and {against} "
        f"{base}; the drop of {drop.value} is {judged} the allowed {drop.limit}; "
        f"the weakest category is {worst.category} ({worst.change:+.2f})"
    )


def run(ctx: StepContext) -> Evidence:
    """Ask both models the general questions and compare their answers."""
    settings = ctx.config.evaluation
    questions = choose_questions(load_questions(), settings.regression_questions)
    prompts = [[{"role": "user", "content": question.prompt}] for question in questions]
    limits = [question.max_tokens for question in questions]
    chosen, origin = candidate(ctx), find_origin(ctx)
    of_tuned = ask(ctx, chosen.model, prompts, limits, "tuned model")
    of_base, cached = ask_kept(ctx, untuned(ctx, origin.base), prompts, limits, "base model")
    base, tuned = (
        [check_answer(q, text) for q, text in zip(questions, texts, strict=True)]
        for texts in (of_base, of_tuned)
    )
    table = by_category(questions, base, tuned)
    ctx.write_json("categories.json", [{**vars(r), "change": round(r.change, 4)} for r in table])
    with (ctx.out / "answers.jsonl").open("w", encoding="utf-8") as out:
        for n, question in enumerate(questions):
            entry = {
                "id": question.id,
                "category": question.category,
                "base": of_base[n],
                "base_right": base[n],
                "tuned": of_tuned[n],
                "tuned_right": tuned[n],
            }
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")
    base_share, tuned_share = share(base), share(tuned)
    judged = judge(paired(base, tuned), settings.max_regression)
    return ctx.conclude(
        summarise(judged[0], table, base_share.text(), tuned_share.text(), origin.name),
        [
            *judged,
            *origin.measurements(),
            measure("questions", len(questions), "questions"),
            measure("base_share", round(base_share.value, 4), "share"),
            measure("tuned_share", round(tuned_share.value, 4), "share"),
            measure("base_answers_from_cache", cached, "flag"),
            measure("candidate_sha256", chosen.model.sha256, "sha256"),
        ],
    )
