"""Check an answer by rule: words and numbers in it, its form, and constraints on it.

The constraints are of the kinds of IFEval (Zhou et al., "Instruction-Following Evaluation for Large
Language Models", 2023), with checks and prompts of this project. No judge model is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\w])")
CheckFunction = Callable[[str, Mapping[str, Any]], bool]


def normalise(text: str) -> str:
    """Return the text in lower case, single-spaced, without marks or quotes around it."""
    folded = " ".join(text.replace("’", "'").casefold().split())
    return folded.strip(" .,;:!?\"'`*()[]")


def _place(text: str, word: str) -> int | None:
    """Return where a word or phrase first stands in a normalised text as a whole."""
    found = re.search(rf"(?<!\w){re.escape(normalise(word))}(?!\w)", text)
    return found.start() if found else None


def _exact(answer: str, check: Mapping[str, Any]) -> bool:
    return normalise(answer) in {normalise(wanted) for wanted in check["answers"]}


def _contains_any(answer: str, check: Mapping[str, Any]) -> bool:
    text = normalise(answer)
    return any(_place(text, word) is not None for word in check["words"])


def _choice(answer: str, check: Mapping[str, Any]) -> bool:
    """Check that of the choices the right one is named first; a longer one hides its parts."""
    text = normalise(answer)
    named = [
        (place, -len(choice), choice)
        for choice in check["choices"]
        if (place := _place(text, choice)) is not None
    ]
    return bool(named) and min(named)[2] == check["choices"][0]


def _number(answer: str, check: Mapping[str, Any]) -> bool:
    found = NUMBER.findall(answer)
    if not found:
        return False
    chosen = found[0] if check.get("which", "last") == "first" else found[-1]
    return float(chosen.replace(",", "")) == float(check["value"])


def _regex(answer: str, check: Mapping[str, Any]) -> bool:
    return re.search(check["pattern"], answer.strip()) is not None


def _words(answer: str, check: Mapping[str, Any]) -> bool:
    """Check for a number of words, or for at least one and at most so many."""
    count = len(re.findall(r"[\w'’-]+", answer))
    return count == check["count"] if "count" in check else 0 < count <= check["most"]


def _list(answer: str, check: Mapping[str, Any]) -> bool:
    """Check for distinct items of at most three words, separated by commas on one line."""
    text = re.sub(r"(?:,|(?<![,\s]))\s++and\s+", ", ", normalise(answer))
    items = [item.strip() for item in text.split(",")]
    short = all(re.fullmatch(r"[\w'-]+(?: [\w'-]+){0,2}", item) for item in items)
    return short and len(items) == len(set(items)) == check["items"]


def _ends_with(answer: str, check: Mapping[str, Any]) -> bool:
    return answer.strip().endswith(check["text"])


def _starts_with(answer: str, check: Mapping[str, Any]) -> bool:
    return answer.strip().startswith(check["text"])


def _lower(answer: str, check: Mapping[str, Any]) -> bool:
    return any(letter.isalpha() for letter in answer) and answer == answer.lower()


def _upper(answer: str, check: Mapping[str, Any]) -> bool:
    return any(letter.isalpha() for letter in answer) and answer == answer.upper()


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


FORMATS: dict[str, CheckFunction] = {
    "words": _words,
    "list": _list,
    "ends_with": _ends_with,
    "starts_with": _starts_with,
    "lower": _lower,
    "upper": _upper,
    "without": _without,
    "json": _json,
}


def _format(answer: str, check: Mapping[str, Any]) -> bool:
    return FORMATS[check["rule"]](answer, check)


# kind: the other fields of the check.
#   choice        choices: the first of them is right; see `Question.choices`
#   exact         answers: the whole answer is one of these, except for case and marks
#   contains_any  words: one of these occurs in it as a whole word
#   number        value, which ("last" or "first"): that number of the answer equals it
#   regex         pattern: found in the answer
#   format        rule "words" with count or most, "list" with items, "ends_with",
#                 "starts_with" and "without" with text, "lower", "upper", "json" with value
CHECKS: dict[str, CheckFunction] = {
    "choice": _choice,
    "exact": _exact,
    "contains_any": _contains_any,
    "number": _number,
    "regex": _regex,
    "format": _format,
}
