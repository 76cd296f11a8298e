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
from pathlib import Path
from typing import Any

from tuneline.errors import UserError

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


def _question(record: Any, where: str) -> Question:
    """Return the question of one JSON record.

    Raises:
        UserError: if a field is missing or a check is of an unknown kind.
    """
    try:
        question = Question(
            id=str(record["id"]),
            category=str(record["category"]),
            prompt=str(record["prompt"]),
            check=dict(record["check"]),
            max_tokens=int(record["max_tokens"]),
        )
        # A check that lacks a field shows here, not in the middle of an evaluation.
        check_answer(question, "1")
    except (AttributeError, KeyError, TypeError, ValueError, re.error) as error:
        raise UserError(
            f"{where}: not a question ({type(error).__name__}: {error}); a line needs id, "
            f"category, prompt, max_tokens and a check ({', '.join(CHECKS)})."
        ) from error
    return question


def load_questions(path: Path | None = None) -> list[Question]:
    """Read questions, one JSON object a line.

    Args:
        path: a JSONL file; None for the set that ships with the package.

    Returns:
        The questions in the order of the file.

    Raises:
        UserError: if the file can't be read, a line is not a question, or an id appears twice.
    """
    name = str(path) if path else "general_questions.jsonl"
    try:
        source = path or resources.files("tuneline.harness").joinpath(name)
        lines = source.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: the questions can't be read ({error}).") from error
    questions: dict[str, Question] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{name}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON ({error}); write one object a line.") from error
        question = _question(record, where)
        if question.id in questions:
            raise UserError(f"{where}: the id {question.id!r} appears twice; make it unique.")
        questions[question.id] = question
    if not questions:
        raise UserError(f"{name}: there is no question in it; write one JSON object a line.")
    return list(questions.values())
