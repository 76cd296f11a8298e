"""The base, given a fair chance: shown the form of the answer, and read generously.

A base that scores 0 because it wraps its JSON in prose, or because nobody told it the labels, says
nothing of what training taught. So the base is also judged with its answer found in prose, and
asked with an instruction and a few training rows as examples. The examples are the same for every
row, so that the engine evaluates them once; they are spread over the labels.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.data.tables.rows import Message, Row
from tuneline.evidence import Measurement, measure
from tuneline.harness.answers import Task
from tuneline.harness.asking import ask_kept
from tuneline.harness.judged import Judged, judge
from tuneline.harness.rows import spread
from tuneline.harness.served_models import untuned
from tuneline.step_context import StepContext

ANSWERS = "fair_base_answers.jsonl"
# Labels are named in the instruction while they are this few, and short.
NAMED_LABELS, LABEL_CHARACTERS = 100, 2000
# Tokens that the template adds around the turns of an example.
TEMPLATE_TOKENS = 16


@dataclass(frozen=True)
class Form:
    """A form in which the base was asked and judged.

    Attributes:
        name: what was done, for a sentence.
        judged: its answers.
        keep: whether each hold-out row was asked in this form.
    """

    name: str
    judged: Judged
    keep: tuple[bool, ...]


@dataclass(frozen=True)
class FairBase:
    """The forms of the base, and what is measured of them."""

    forms: tuple[Form, ...]
    measurements: tuple[Measurement, ...]


def instruction_for(task: Task, answer: str) -> str:
    """Return the instruction that the base gets.

    Args:
        task: the rule by which answers are judged.
        answer: an expected answer, for the keys of JSON.
    """
    labels = ", ".join(task.labels)
    known = task.labels if len(labels) <= LABEL_CHARACTERS else ()
    named = f" one of: {labels}" if 0 < len(known) <= NAMED_LABELS else ""
    if task.field:
        value = f' The value of "{task.field}" is{named}.' if named else ""
        return (
            "Answer with one JSON object of the same form as in the examples, and with nothing "
            f"else.{value}"
        )
    if named:
        return f"Answer with{named}. Write nothing else."
    if task.metric == "number":
        return "End your answer with the final number, as in the examples."
    if task.metric == "tool_calls":
        return "Call tools in exactly the form of the examples, and write nothing else."
    if answer.lstrip().startswith("{"):
        return "Answer with one JSON object of the same form as in the examples, and nothing else."
    return "Answer in the form, length and style of the examples."


def tokens_of(row: Row) -> int:
    """Return the tokens of a rendered row; those of a row that was not counted are estimated."""
    return row.n_tokens or sum(_estimate(turn["content"]) for turn in row.messages)


def _estimate(text: str) -> int:
    """Return more tokens than a text is likely to have: one for two bytes, and the template's."""
    return len(text.encode()) // 2 + TEMPLATE_TOKENS


def choose_shots(rows: Sequence[Row], count: int, room: int, seed: int) -> list[Row]:
    """Choose training rows as examples: different labels, and no more than there is room for.

    Args:
        rows: the training rows.
        count: the largest number of examples.
        room: tokens that all of them may take.
        seed: seed of the draw.
    """
    chosen: list[Row] = []
    if count == 0:
        return chosen
    for row in spread(rows, 8 * count, seed):
        if tokens_of(row) <= room and len(chosen) < count:
            chosen.append(row)
            room -= tokens_of(row)
    return chosen


def fair_prompt(row: Row, instruction: str, shots: Sequence[Row]) -> list[Message]:
    """Return a prompt with an instruction and examples before the row's own turns.

    The instruction follows the row's system turn. Without one it begins the first user turn, since
    some templates have no place for a system turn.
    """
    system = [turn for turn in row.prompt if turn["role"] == "system"]
    turns = [turn for shot in shots for turn in shot.messages if turn["role"] != "system"]
    turns += [turn for turn in row.prompt if turn["role"] != "system"]
    if system:
        text = f"{system[0]['content']}\n\n{instruction}"
        return [{"role": "system", "content": text}, *turns]
    first = {**turns[0], "content": f"{instruction}\n\n{turns[0]['content']}"}
    return [first, *turns[1:]]


def fitting_shots(row: Row, shots: Sequence[Row], room: int) -> Sequence[Row] | None:
    """Return as many of the examples as fit beside a row; None if not even the instruction fits.

    Args:
        row: the row.
        shots: the examples, of which the first ones are kept.
        room: tokens that the row and its examples may take together.
    """
    left = room - tokens_of(row)
    if left < 0:
        return None
    kept = [n for n in range(len(shots) + 1) if sum(map(tokens_of, shots[:n])) <= left]
    return shots[: kept[-1]]


def _room(ctx: StepContext, instruction: str) -> int:
    """Return the tokens that a request has left beside the instruction and the answer."""
    context, answer = ctx.config.deployment.context_tokens, ctx.config.evaluation.max_new_tokens
    return context - answer - _estimate(instruction)


def fair_base(
    ctx: StepContext, task: Task, rows: Sequence[Row], train: Sequence[Row], plain: Sequence[str]
) -> FairBase:
    """Ask the base with an instruction and examples, and judge all of its answers generously.

    Args:
        ctx: the step.
        task: the rule.
        rows: the hold-out rows.
        train: the training rows.
        plain: the base's answers to the rows as they are.
    """
    settings, seed = ctx.config.evaluation, ctx.config.training.seed
    count = settings.fair_base_rows or len(rows)
    drawn = {row.row_id for row in spread(rows, count, seed)}
    asked = [row for row in rows if row.row_id in drawn]
    instruction = instruction_for(task, rows[0].answer)
    # Rows longer than most get fewer examples, so that one long row does not take them from all.
    room = _room(ctx, instruction)
    usual = int(statistics.quantiles(map(tokens_of, asked), n=10)[-1]) if len(asked) > 1 else 0
    shots = choose_shots(train, settings.fair_base_shots, room - usual, seed)
    fitting = [fitting_shots(row, shots, room) for row in asked]
    prompts = [
        row.prompt if kept is None else fair_prompt(row, instruction, kept)
        for row, kept in zip(asked, fitting, strict=True)
    ]
    fewer = sum(kept is None or len(kept) < len(shots) for kept in fitting)
    limits = [settings.max_new_tokens] * len(asked)
    answers, cached = ask_kept(ctx, untuned(ctx), prompts, limits, "base model with examples")
    _write(ctx, asked, answers)
    described = {"instruction": instruction, "examples": [row.row_id for row in shots]}
    ctx.write_json("fair_base.json", described)
    expected = [row.answer for row in rows]
    keep = tuple(row.row_id in drawn for row in rows)
    helped = judge(task, answers, [row.answer for row in asked], anywhere=True)
    generous = judge(task, plain, expected, anywhere=True)
    return FairBase(
        (
            Form("its answer found in prose", generous, (True,) * len(rows)),
            Form(_asked_as(len(shots), fewer), helped, keep),
        ),
        (
            measure("fair_base_examples", len(shots), "rows"),
            measure("fair_base_rows", len(asked), "rows"),
            measure("fair_base_rows_with_fewer_examples", fewer, "rows"),
            measure("fair_base_answers_from_cache", cached, "flag"),
        ),
    )


def _asked_as(shots: int, fewer: int) -> str:
    """Name the form with examples: not all rows had room for them."""
    return f"an instruction and {'up to ' if fewer else ''}{shots} examples"


def _write(ctx: StepContext, rows: Sequence[Row], answers: Sequence[str]) -> None:
    with (ctx.out / ANSWERS).open("w", encoding="utf-8") as out:
        for row, answer in zip(rows, answers, strict=True):
            entry = {"row_id": row.row_id, "expected": row.answer, "base": answer}
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")
