"""Choose the task's metric by the configuration and the expected answers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from tuneline.data.conversations.answers import answer_object
from tuneline.errors import UserError
from tuneline.harness.answers.numbers import final_number, states_number
from tuneline.harness.answers.task import TOLERANCE, Metric, Task
from tuneline.harness.answers.texts import words_of
from tuneline.harness.answers.tool_calls import tool_calls

# Whole answers that repeat count as labels: so few kinds, as a share of the rows and at most.
CLOSED_SHARE, CLOSED_KINDS = 0.5, 200
# Longer answers can be written in many ways, so that equality says little of them.
SHORT_WORDS = 3


def choose_task(
    metric: Literal["auto"] | Metric,
    field: str | None,
    expected: Sequence[str],
    tolerance: float = TOLERANCE,
) -> Task:
    """Choose the metric by the configuration and the expected answers.

    `auto` takes, in this order: the label field, if every expected answer is JSON that has it;
    tool calls, if half of the answers make some; numbers, if every answer is one or names one
    behind `####`; equality, for answers that repeat or are short, and for JSON; chrF for the rest,
    which is free text.

    Args:
        metric: the configured one.
        field: the label field of a JSON answer.
        expected: the expected answers.
        tolerance: the largest relative difference of numbers.

    Raises:
        UserError: if the expected answers do not have what the configured metric compares.
    """
    chosen = _auto(field, expected) if metric == "auto" else _configured(metric, field, expected)
    return replace(chosen, tolerance=tolerance, labels=_labels(chosen, expected))


def _auto(field: str | None, expected: Sequence[str]) -> Task:
    if field and expected and not _lacking(field, expected):
        return Task("json_field", field, why=f"every expected answer is JSON with {field!r}")
    count = len(expected)
    calling = sum(bool(tool_calls(text)) for text in expected)
    if expected and calling >= count / 2:
        return Task("tool_calls", why=f"{calling} of {count} expected answers call a tool")
    if expected and all(map(states_number, expected)):
        return Task("number", why="every expected answer is a number or ends in one")
    kinds = len(_kinds(expected))
    if kinds <= min(CLOSED_SHARE * count, CLOSED_KINDS):
        return Task("exact", why=f"{count} expected answers have {kinds} different texts")
    words = statistics.median(map(_words, expected)) if expected else 0
    if words <= SHORT_WORDS:
        return Task("exact", why="most expected answers are JSON or have at most three words")
    return Task("chrf", why=f"the expected answers are free text of {words:g} words (median)")


def _configured(metric: Metric, field: str | None, expected: Sequence[str]) -> Task:
    why = f"evaluation.metric is {metric}"
    if metric == "json_field" and not field:
        raise UserError("evaluation.metric is json_field, but data.label_field is not set; name it")
    if metric == "json_field" or (metric == "macro_f1" and field):
        assert field is not None
        lacking = _lacking(field, expected)
        if lacking:
            raise UserError(
                f"{why}, but {len(lacking)} of {len(expected)} expected answers have no field "
                f"{field!r} (the first: {lacking[0][:60]!r}); set data.label_field or "
                "evaluation.metric: exact"
            )
        return Task(metric, field, why=why)
    if metric == "number":
        without = [text for text in expected if final_number(text) is None]
        if without:
            raise UserError(
                f"{why}, but {len(without)} of {len(expected)} expected answers hold no number "
                f"(the first: {without[0][:60]!r}); choose another evaluation.metric"
            )
    if metric == "tool_calls" and not any(map(tool_calls, expected)):
        raise UserError(
            f"{why}, but none of the {len(expected)} expected answers calls a tool; choose "
            "another evaluation.metric"
        )
    return Task(metric, why=why)


def _lacking(field: str, expected: Sequence[str]) -> list[str]:
    return [text for text in expected if field not in (answer_object(text) or {})]


def _kinds(expected: Sequence[str]) -> list[str]:
    return sorted({" ".join(text.split()) for text in expected})


def _words(text: str) -> int:
    """Return the words of a text; JSON is compared by value and counts as none."""
    return 0 if answer_object(text) is not None else len(words_of(text))


def _labels(task: Task, expected: Sequence[str]) -> tuple[str, ...]:
    """Return the labels that the answers name, where each is one of a few."""
    if task.field:
        named = {task.label(text) for text in expected}
        return tuple(sorted(name for name in named if name is not None))
    if task.metric not in ("exact", "macro_f1"):
        return ()
    if any(answer_object(text) is not None for text in expected):
        return ()
    kinds = _kinds(expected)
    few = len(kinds) <= min(CLOSED_SHARE * len(expected), CLOSED_KINDS)
    return tuple(kinds) if few or task.metric == "macro_f1" else ()
