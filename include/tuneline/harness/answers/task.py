"""The rule by which an answer is scored.

Answers are judged strictly: a JSON answer is the whole text, parsed as JSON. JSON wrapped in
prose would break its caller, so it counts as wrong; how often it happens is reported beside
the metric, and the base is also judged without it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any, Literal

from tuneline.data.conversations.answers import answer_object
from tuneline.harness.answers import numbers, texts
from tuneline.harness.answers.structure import canonical, find_object
from tuneline.harness.answers.tool_calls import same_calls

Metric = Literal["json_field", "macro_f1", "exact", "number", "tool_calls", "chrf", "rouge_l"]
# Far below any rounding that an answer states on purpose, far above that of a float.
TOLERANCE = 1e-4
_GRADED = ("chrf", "rouge_l")
_NAMES = {
    "exact": "exact match",
    "number": "numeric match",
    "tool_calls": "tool-call match",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
}
_FENCE = re.compile(r"```\w*+\n?(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Task:
    """The rule by which an answer is scored.

    Attributes:
        metric: `json_field` compares one field of a JSON answer, `exact` the whole answer,
            `number` the number that it ends in, `tool_calls` names and arguments; `chrf` and
            `rouge_l` say how alike two texts are. `macro_f1` compares labels as the first two do
            and counts every label alike.
        field: the field that holds the label; empty if the whole answer is the label.
        tolerance: the largest relative difference of `number`.
        why: why this metric was chosen.
        labels: all labels as they are expected, where there are few.
    """

    metric: Metric
    field: str = ""
    tolerance: float = TOLERANCE
    why: str = attribute(default="", compare=False)
    labels: tuple[str, ...] = attribute(default=(), compare=False)

    @property
    def name(self) -> str:
        """The metric's name as it stands in evidence."""
        if self.metric == "json_field":
            return f"{self.field} accuracy"
        if self.metric == "macro_f1":
            return f"{self.field} macro-F1".strip()
        return _NAMES[self.metric]

    @property
    def graded(self) -> bool:
        """True if an answer can be partly right."""
        return self.metric in _GRADED

    @property
    def has_labels(self) -> bool:
        """True if an answer names one label of a few."""
        return self.metric in ("json_field", "macro_f1") or bool(self.labels)

    def score(self, answer: str, expected: str, *, anywhere: bool = False) -> float:
        """Score an answer from 0 to 1.

        Args:
            answer: the answer.
            expected: the expected answer.
            anywhere: True to find the answer in prose or in a code fence too.
        """
        if self.graded:
            compare = texts.chrf if self.metric == "chrf" else texts.rouge_l
            strict = compare(answer, expected)
            return max(strict, compare(_unfenced(answer), expected)) if anywhere else strict
        return float(self._right(answer, expected, anywhere=anywhere))

    def right(self, answer: str, expected: str) -> bool:
        """Return True if an answer is wholly right."""
        return self.score(answer, expected) == 1.0

    def right_anywhere(self, answer: str, expected: str) -> bool:
        """Return True if the answer, or the one found in its prose, is wholly right."""
        return self.score(answer, expected, anywhere=True) == 1.0

    def label(self, answer: str, *, anywhere: bool = False) -> str | None:
        """Return the label that an answer names, None if it names none.

        Args:
            answer: the answer.
            anywhere: True to find the label in prose too.
        """
        if self.field:
            value = find_object(answer) if anywhere else answer_object(answer)
            if value is None or self.field not in value:
                return None
            found = value[self.field]
            return found if isinstance(found, str) else canonical(found)
        if anywhere and self.labels:
            return self._only_label_in(answer)
        return _whole(answer)

    def _right(self, answer: str, expected: str, *, anywhere: bool) -> bool:
        if self.metric == "number":
            return numbers.same_number(answer, expected, self.tolerance)
        if self.metric == "tool_calls":
            return same_calls(answer, expected)
        if self.field:
            got = find_object(answer) if anywhere else answer_object(answer)
            return self._same_label(got, answer_object(expected))
        if _whole(answer) == _whole(expected):
            return True
        return anywhere and self._found(answer, expected)

    def _found(self, answer: str, expected: str) -> bool:
        if self.labels:
            return self._only_label_in(answer) == _whole(expected)
        value = find_object(answer) if answer_object(expected) is not None else None
        if value is not None:
            return canonical(value) == _whole(expected)
        return _whole(_unfenced(answer)) == _whole(expected)

    def _only_label_in(self, text: str) -> str | None:
        """Return the one label whose words stand in a text; None if there is none or several."""
        lowered = text.lower()
        found = [
            label
            for label in self.labels
            if re.search(rf"(?<!\w){re.escape(label.lower())}(?!\w)", lowered)
        ]
        # "not a refund" would also name "refund": the longer label holds the shorter one.
        whole = [a for a in found if not any(a != b and a.lower() in b.lower() for b in found)]
        return whole[0] if len(whole) == 1 else None

    def _same_label(self, got: Mapping[str, Any] | None, want: Mapping[str, Any] | None) -> bool:
        if got is None or want is None or self.field not in got or self.field not in want:
            return False
        return canonical(got[self.field]) == canonical(want[self.field])


def _whole(text: str) -> str:
    """Return the same text for answers that are equal: JSON by value, text up to white space."""
    value = answer_object(text)
    return " ".join(text.split()) if value is None else canonical(value)


def _unfenced(text: str) -> str:
    fenced = _FENCE.search(text)
    return fenced.group(1) if fenced else text
