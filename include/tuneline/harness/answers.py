"""Judge a model's answers: the task's metric, and the structure of an answer.

Answers are judged strictly: a JSON answer is the whole text, parsed as JSON. JSON wrapped in
prose would break its caller, so it counts as wrong; how often it happens is reported beside
the metric.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tuneline.data.conversations.answers import answer_object
from tuneline.errors import UserError

Metric = Literal["json_field", "exact"]


def find_object(text: str) -> dict[str, Any] | None:
    """Return the first JSON object in a text, also in prose or in a code fence, or None."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, _ = decoder.raw_decode(text, start)
        except ValueError:
            value = None
        if isinstance(value, dict):
            return value
        start = text.find("{", start + 1)
    return None


def canonical(value: Any) -> str:
    """Return the same text for equal JSON values, whatever their spacing or order."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def structure_of(text: str, label_field: str | None) -> str:
    """Return the parsed structure of an answer: its keys, and each value that is not free text.

    Strings other than the label are prose, of which only the presence counts. An answer that
    is not a JSON object is its own structure.

    Args:
        text: the answer.
        label_field: the field that holds the class; None without a class.
    """
    parsed = answer_object(text)
    if parsed is None:
        return text

    def reduce(key: str | None, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: reduce(str(name), inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [reduce(None, inner) for inner in value]
        return "…" if isinstance(value, str) and key != label_field else value

    return canonical(reduce(None, parsed))


@dataclass(frozen=True)
class Task:
    """The rule by which an answer is right.

    Attributes:
        metric: `json_field` compares one field of a JSON answer, `exact` the whole answer.
        field: the field that `json_field` compares.
    """

    metric: Metric
    field: str = ""

    @property
    def name(self) -> str:
        """The metric's name as it stands in evidence."""
        return f"{self.field} accuracy" if self.metric == "json_field" else "exact match"

    def right(self, answer: str, expected: str) -> bool:
        """Return True if an answer is right."""
        if self.metric == "exact":
            return _equal(answer, expected)
        got, want = answer_object(answer), answer_object(expected)
        return self._same_label(got, want)

    def right_anywhere(self, answer: str, expected: str) -> bool:
        """Return True if the answer, or the first JSON object in its prose, is right."""
        if self.metric == "exact":
            return _equal(answer, expected)
        return self._same_label(find_object(answer), answer_object(expected))

    def _same_label(self, got: Mapping[str, Any] | None, want: Mapping[str, Any] | None) -> bool:
        if got is None or want is None or self.field not in got or self.field not in want:
            return False
        return canonical(got[self.field]) == canonical(want[self.field])


def _equal(answer: str, expected: str) -> bool:
    got, want = answer_object(answer), answer_object(expected)
    if got is not None and want is not None:
        return canonical(got) == canonical(want)
    return " ".join(answer.split()) == " ".join(expected.split())


def choose_task(
    metric: Literal["auto", "json_field", "exact"], field: str | None, expected: Sequence[str]
) -> Task:
    """Choose the metric by the configuration and the expected answers.

    Args:
        metric: the configured one; `auto` takes the label field if every expected answer has it.
        field: the label field of a JSON answer.
        expected: the expected answers.

    Raises:
        UserError: if `json_field` is configured and an expected answer has no such field.
    """
    if metric == "exact" or (metric == "auto" and not field):
        return Task("exact")
    if not field:
        raise UserError("evaluation.metric is json_field, but data.label_field is not set; name it")
    lacking = [text for text in expected if field not in (answer_object(text) or {})]
    if metric == "auto":
        return Task("json_field", field) if expected and not lacking else Task("exact")
    if lacking:
        raise UserError(
            f"evaluation.metric is json_field, but {len(lacking)} of {len(expected)} expected "
            f"answers have no field {field!r} (the first: {lacking[0][:60]!r}); "
            "set data.label_field or evaluation.metric: exact"
        )
    return Task("json_field", field)


def scores(task: Task, answers: Sequence[str], expected: Sequence[str]) -> list[bool]:
    """Return whether each answer is right, in the order of the rows."""
    return [task.right(got, want) for got, want in zip(answers, expected, strict=True)]
