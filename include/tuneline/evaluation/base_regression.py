"""General ability, base against tuned: what fine-tuning must not take away.

Proves that the tuned model still answers general questions with checkable
answers about as often as the base. Both answer the same questions through the
same server; the drop is a paired difference, and what is allowed follows from
its measured noise (two standard errors, so that a model that lost nothing
fails about one time in forty). A limit set tighter than the noise is refused,
since it would decide by chance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneline.evidence import Evidence, Measurement, measure
from tuneline.harness.general_questions import Question, check_answer, load_questions
from tuneline.harness.intervals import Paired, paired, share
from tuneline.harness.served_models import ask, ask_base, base_gguf, candidate
from tuneline.run import StepContext

# Standard errors that a drop may have by chance.
NOISE_FACTOR = 2.0
# Above this the questions are too few to see a loss that would matter.
MAX_DETECTABLE_DROP = 0.15


@dataclass(frozen=True)
class CategoryRow:
    """One row of the table."""

    category: str
    questions: int
    base: float
    tuned: float

    @property
    def change(self) -> float:
        """Tuned minus base."""
        return self.tuned - self.base


def choose_questions(questions: Sequence[Question], count: int | None) -> list[Question]:
    """The first questions of each category in turn, `count` in all; None takes every one."""
    if count is None or count >= len(questions):
        return list(questions)
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.category, []).append(question)
    places = max(len(group) for group in groups.values())
    ordered = [
        group[place] for place in range(places) for group in groups.values() if place < len(group)
    ]
    return ordered[:count]


def by_category(
    questions: Sequence[Question], base: Sequence[bool], tuned: Sequence[bool]
) -> list[CategoryRow]:
    """Share of right answers of both models in each category."""
    table = []
    for category in sorted({question.category for question in questions}):
        at = [number for number, q in enumerate(questions) if q.category == category]
        shares = (sum(flags[number] for number in at) / len(at) for flags in (base, tuned))
        table.append(CategoryRow(category, len(at), *shares))
    return table


def judge(result: Paired, max_regression: float | None) -> list[Measurement]:
    """The drop against what is allowed.

    Args:
        result: paired difference, tuned minus base.
        max_regression: the configured limit; None derives it from the noise.

    Raises:
        UserError: the configured limit is tighter than the noise.
    """
    noise = result.difference.error
    allowed = NOISE_FACTOR * noise if max_regression is None else max_regression
    drop = 0.0 - result.difference.value
    return [
        measure(
            "drop",
            round(drop, 4),
            "share",
            "<=",
            round(allowed, 4),
            noise=round(noise, 4),
            tolerance=allowed,
        ),
        measure(
            "detectable_drop",
            round(NOISE_FACTOR * noise, 4),
            "share",
            "<=",
            MAX_DETECTABLE_DROP,
            on_breach="warn",
        ),
        measure("only_base_right", result.only_first, "questions"),
        measure("only_tuned_right", result.only_second, "questions"),
        measure("mcnemar_p", round(result.p_value, 6), "p"),
    ]


def run(ctx: StepContext) -> Evidence:
    """Ask both models the general questions and compare."""
    settings = ctx.config.evaluation
    questions = choose_questions(load_questions(), settings.regression_questions)
    prompts = [[{"role": "user", "content": question.prompt}] for question in questions]
    limits = [question.max_tokens for question in questions]
    chosen = candidate(ctx)
    tuned = ask(ctx, chosen.file.path, prompts, limits, "tuned model")
    base, cached = ask_base(ctx, base_gguf(ctx), prompts, limits, "base model")
    answers = {"base": base, "tuned": tuned}
    right = {
        who: [check_answer(q, text) for q, text in zip(questions, texts, strict=True)]
        for who, texts in answers.items()
    }
    table = by_category(questions, right["base"], right["tuned"])
    _write(ctx, questions, answers, right)
    _write_table(ctx, table)
    result = paired(right["base"], right["tuned"])
    limits_held = judge(result, settings.max_regression)
    worst = min(table, key=lambda row: row.change)
    summary = (
        f"general questions right: tuned {share(right['tuned']).text()}, base "
        f"{share(right['base']).text()} of {len(questions)}; drop "
        f"{0.0 - result.difference.value:.3f}, allowed {limits_held[0].limit}; "
        f"weakest category {worst.category} ({worst.change:+.2f})"
    )
    return ctx.conclude(
        summary,
        [
            *limits_held,
            measure("questions", len(questions), "questions"),
            measure("base_share", round(share(right["base"]).value, 4), "share"),
            measure("tuned_share", round(share(right["tuned"]).value, 4), "share"),
            measure("base_answers_from_cache", cached, "flag"),
            measure("candidate_sha256", chosen.file.sha256, "sha256"),
        ],
    )


def _write(
    ctx: StepContext,
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[str]],
    right: Mapping[str, Sequence[bool]],
) -> None:
    with (ctx.out / "answers.jsonl").open("w", encoding="utf-8") as out:
        for number, question in enumerate(questions):
            entry: dict[str, Any] = {"id": question.id, "category": question.category}
            for who, texts in answers.items():
                entry |= {who: texts[number], f"{who}_right": right[who][number]}
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _write_table(ctx: StepContext, table: Sequence[CategoryRow]) -> None:
    rows = [{**vars(row), "change": round(row.change, 4)} for row in table]
    (ctx.out / "categories.json").write_text(json.dumps(rows, indent=1))
