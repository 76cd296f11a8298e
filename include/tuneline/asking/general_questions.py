"""General questions, and texts, that show what a model has kept of its general ability.

All are written for this project. Answers are checked by rule, without a judge model: words and
numbers in them, their form, and constraints of the kinds of IFEval (Zhou et al., 2023). A small
instruct model answers a middling share, so that a loss shows as well as a gain.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from random import Random
from typing import Any


@dataclass(frozen=True)
class Question:
    """One question; `check` is its rule, `{"kind": ..., ...}` (see `CHECKS`)."""

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


# A question that templates made has a `g` in its number.
_GENERATED = re.compile(r"-g\d+$")


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def load_suite() -> list[Question]:
    """Return all general questions.

    Categories follow one another in proportion to their sizes, and so do generated and likelihood
    answers within each, so that the first `n` questions are a stratified sample.
    """
    lines = _text("general_questions.jsonl").splitlines()
    return [Question(**json.loads(line)) for line in lines]


def load_questions() -> list[Question]:
    """Return the short questions, whose answers are generated, in the order of their ids."""
    short = (question for question in load_suite() if not _GENERATED.search(question.id))
    return sorted(short, key=lambda question: question.id)


def paragraphs() -> list[str]:
    """Return general texts of several registers, one paragraph each."""
    blocks = _text("paragraphs.txt").split("\n\n")
    return [" ".join(block.split()) for block in blocks if not block.startswith("#")]


# As many words in common make a text known (Brown et al., "Language Models are Few-Shot Learners",
# 2020, appendix C). Chance writes what is shorter than the second, such as "2 + 6".
GRAM_WORDS, LEAST_WORDS = 13, 5


def held_by(questions: Sequence[Question], texts: Sequence[str]) -> set[str]:
    """Return the ids of the questions of which a text holds 13 words in a row, or all if fewer.

    Of fewer than five words, the text must hold nothing else. Case and marks do not count.
    """
    import numpy as np

    from tuneline.data.near_duplicates.shingles import batches, grams_of, normalise, words_of

    by_width: dict[int, list[Question]] = {}
    for question in questions:
        words = len(normalise(question.prompt).split())
        by_width.setdefault(min(GRAM_WORDS, max(LEAST_WORDS, words)), []).append(question)
    grams = {w: grams_of(words_of([q.prompt for q in some]), w) for w, some in by_width.items()}
    held = set()
    for part in batches(texts):
        words_of_part = words_of(texts[part])
        for width, known in grams.items():
            found = np.isin(known.hashes, grams_of(words_of_part, width).hashes)
            owners = np.searchsorted(known.offsets, np.flatnonzero(found), side="right") - 1
            held |= {by_width[width][number].id for number in owners}
    return held


_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\w])")
_Check = Callable[[str, Mapping[str, Any]], bool]


def _normalise(text: str) -> str:
    """Return the text in lower case, single-spaced, without marks or quotes around it."""
    folded = " ".join(text.replace("’", "'").casefold().split())
    return folded.strip(" .,;:!?\"'`*()[]")


def _place(text: str, word: str) -> int | None:
    """Return where a word or phrase first is in a normalised text as a whole."""
    found = re.search(rf"(?<!\w){re.escape(_normalise(word))}(?!\w)", text)
    return found.start() if found else None


def _choice(answer: str, check: Mapping[str, Any]) -> bool:
    """Check that of the choices the right one is named first; a longer one hides its parts."""
    text = _normalise(answer)
    named = [
        (place, -len(choice), choice)
        for choice in check["choices"]
        if (place := _place(text, choice)) is not None
    ]
    return bool(named) and min(named)[2] == check["choices"][0]


def _number(answer: str, check: Mapping[str, Any]) -> bool:
    found = _NUMBER.findall(answer)
    if not found:
        return False
    chosen = found[0] if check.get("which", "last") == "first" else found[-1]
    return float(chosen.replace(",", "")) == float(check["value"])


def _words(answer: str, check: Mapping[str, Any]) -> bool:
    """Check for a number of words, or for at least one and at most so many."""
    count = len(re.findall(r"[\w'’-]+", answer))
    return count == check["count"] if "count" in check else 0 < count <= check["most"]


def _list(answer: str, check: Mapping[str, Any]) -> bool:
    """Check for distinct items of at most three words, separated by commas on one line."""
    text = re.sub(r"(?:,|(?<![,\s]))\s++and\s+", ", ", _normalise(answer))
    items = [item.strip() for item in text.split(",")]
    short = all(re.fullmatch(r"[\w'-]+(?: [\w'-]+){0,2}", item) for item in items)
    return short and len(items) == len(set(items)) == check["items"]


def _without(answer: str, check: Mapping[str, Any]) -> bool:
    """Check for an answer of three words or more without a text, in whatever case."""
    said = len(re.findall(r"\w+", answer)) >= 3
    return said and check["text"].casefold() not in answer.casefold()


def _json(answer: str, check: Mapping[str, Any]) -> bool:
    """Check that the whole answer is the JSON value that is asked for."""
    try:
        return bool(json.loads(answer) == check["value"])
    except ValueError:
        return False


FORMATS: dict[str, _Check] = {
    "words": _words,
    "list": _list,
    "ends_with": lambda answer, check: answer.strip().endswith(check["text"]),
    "starts_with": lambda answer, check: answer.strip().startswith(check["text"]),
    "lower": lambda answer, _: any(map(str.isalpha, answer)) and answer == answer.lower(),
    "upper": lambda answer, _: any(map(str.isalpha, answer)) and answer == answer.upper(),
    "without": _without,
    "json": _json,
}


# kind: the other fields of the check.
#   choice        choices: the first of them is right; see `Question.choices`
#   exact         answers: the whole answer is one of these, except for case and marks
#   contains_any  words: one of these occurs in it as a whole word
#   number        value, which ("last" or "first"): that number of the answer equals it
#   regex         pattern: found in the answer
#   format        rule "words" with count or most, "list" with items, "ends_with",
#                 "starts_with" and "without" with text, "lower", "upper", "json" with value
CHECKS: dict[str, _Check] = {
    "choice": _choice,
    "exact": lambda answer, check: _normalise(answer) in map(_normalise, check["answers"]),
    "contains_any": lambda answer, check: any(
        _place(_normalise(answer), word) is not None for word in check["words"]
    ),
    "number": _number,
    "regex": lambda answer, check: re.search(check["pattern"], answer.strip()) is not None,
    "format": lambda answer, check: FORMATS[check["rule"]](answer, check),
}


def check_answer(question: Question, answer: str) -> bool:
    """Return True if a model's answer, without special tokens, is right."""
    return CHECKS[question.check["kind"]](answer, question.check)
