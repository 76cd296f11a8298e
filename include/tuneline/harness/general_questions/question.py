"""A general question, and the two ways to answer it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from tuneline.harness.general_questions.checks import CHECKS


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: its id, unique in its set.
        category: its subject; results are reported for each category.
        prompt: the user's turn.
        check: the rule, `{"kind": ..., ...}`; see `CHECKS`.
        max_tokens: limit of a generated answer, in tokens.
    """

    id: str
    category: str
    prompt: str
    check: Mapping[str, Any]
    max_tokens: int

    @property
    def choices(self) -> tuple[str, ...]:
        """Whole answers of which the model should find the first the likeliest; () without."""
        return tuple(self.check["choices"]) if self.check["kind"] == "choice" else ()

    @property
    def listed(self) -> str:
        """The prompt with its choices, for an engine that tells no probabilities."""
        if not self.choices:
            return self.prompt
        shown = list(self.choices)
        Random(self.id).shuffle(shown)  # noqa: S311 - an order, not a secret
        return f"{self.prompt}\nAnswer with one of these: {'; '.join(shown)}"


def check_answer(question: Question, answer: str) -> bool:
    """Return True if a model's answer to a question is right.

    Args:
        question: the question.
        answer: the generated text, without special tokens.
    """
    return CHECKS[question.check["kind"]](answer, question.check)
