"""Read general questions and check their answers by rule.

`general_questions.jsonl` holds short questions written for this project: arithmetic, common
facts, grammar and instruction following. A small instruct model answers about half of them, so
that a loss shows as well as a gain. No judge model is needed: the answers are checked like
verifiable instructions (Zhou et al., "Instruction-Following Evaluation for Large Language
Models", 2023).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\w])")
CheckFunction = Callable[[str, Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: its id, unique in its file.
        category: its subject; results are reported for each category.
        prompt: the user's turn.
        check: the rule, `{"kind": ..., ...}`; see `CHECKS`.
        max_tokens: limit of an answer, in tokens.
    """

    id: str
    category: str
    prompt: str
    check: Mapping[str, Any]
    max_tokens: int


def normalise(text: str) -> str:
    """Return the text in lower case, single-spaced, without marks or quotes around it."""
    folded = " ".join(text.replace("’", "'").casefold().split())
    return folded.strip(" .,;:!?\"'`*()[]")


def _exact(answer: str, check: Mapping[str, Any]) -> bool:
    return normalise(answer) in {normalise(wanted) for wanted in check["answers"]}


def _contains_any(answer: str, check: Mapping[str, Any]) -> bool:
    text = normalise(answer)
    return any(
        re.search(rf"(?<!\w){re.escape(normalise(word))}(?!\w)", text) for word in check["words"]
    )


def _number(answer: str, check: Mapping[str, Any]) -> bool:
    found = NUMBER.findall(answer)
    if not found:
        return False
    chosen = found[0] if check.get("which", "last") == "first" else found[-1]
    return float(chosen.replace(",", "")) == float(check["value"])


def _regex(answer: str, check: Mapping[str, Any]) -> bool:
    return re.search(check["pattern"], answer.strip()) is not None


def _words(answer: str, check: Mapping[str, Any]) -> bool:
    return len(re.findall(r"[\w'’-]+", answer)) == check["count"]


def _list(answer: str, check: Mapping[str, Any]) -> bool:
    """Check for distinct items of at most three words, separated by commas on one line."""
    text = re.sub(r",?\s+and\s+", ", ", normalise(answer))
    items = [item.strip() for item in text.split(",")]
    short = all(re.fullmatch(r"[\w'-]+(?: [\w'-]+){0,2}", item) for item in items)
    return short and len(items) == len(set(items)) == check["items"]


def _ends_with(answer: str, check: Mapping[str, Any]) -> bool:
    return answer.strip().endswith(check["text"])


FORMATS: dict[str, CheckFunction] = {"words": _words, "list": _list, "ends_with": _ends_with}


def _format(answer: str, check: Mapping[str, Any]) -> bool:
    return FORMATS[check["rule"]](answer, check)


# kind: the other fields of the check.
#   exact         answers: the whole answer is one of these, except for case and marks
#   contains_any  words: one of these occurs in it as a whole word
#   number        value, which ("last" or "first"): that number of the answer equals it
#   regex         pattern: found in the answer
#   format        rule "words" with count, "list" with items, "ends_with" with text
CHECKS: dict[str, CheckFunction] = {
    "exact": _exact,
    "contains_any": _contains_any,
    "number": _number,
    "regex": _regex,
    "format": _format,
}


def check_answer(question: Question, answer: str) -> bool:
    """Return True if a model's answer to a question is right.

    Args:
        question: the question.
        answer: the generated text, without special tokens.
    """
    return CHECKS[question.check["kind"]](answer, question.check)


def load_questions() -> list[Question]:
    """Return the questions that ship with the package, in the order of their file."""
    source = resources.files("tuneline.harness").joinpath("general_questions.jsonl")
    return [Question(**json.loads(line)) for line in source.read_text("utf-8").splitlines()]
