"""Instructions with constraints that can be checked, drawn over topics; answers are generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

from tuneline.harness.general_questions.drafts import Draft

TOPICS = (
    "the sea",
    "a cat",
    "winter",
    "a train",
    "bread",
    "the moon",
    "a garden",
    "music",
    "rain",
    "a bicycle",
    "coffee",
    "a mountain",
    "school",
    "an old house",
    "birds",
    "a river",
)
_KEYWORDS = ("green", "quiet", "morning", "little", "friend", "water", "always", "golden")
Constraint = Callable[[Random, str], tuple[str, Mapping[str, Any]]]


def _rule(rule: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "format", "rule": rule, **fields}


def _lower(_: Random, topic: str) -> tuple[str, Mapping[str, Any]]:
    return f"Write a sentence about {topic} in lower case only, no capital letters.", _rule("lower")


def _upper(_: Random, topic: str) -> tuple[str, Mapping[str, Any]]:
    return f"Write a sentence about {topic}. USE CAPITAL LETTERS ONLY.", _rule("upper")


def _keyword(draw: Random, topic: str) -> tuple[str, Mapping[str, Any]]:
    word = draw.choice(_KEYWORDS)
    check = {"kind": "contains_any", "words": [word]}
    return f"Write a sentence about {topic} that contains the word {word}.", check


def _starts(draw: Random, topic: str) -> tuple[str, Mapping[str, Any]]:
    word = draw.choice(("Yesterday", "Sometimes", "Once", "Today", "Perhaps"))
    return (
        f"Write a sentence about {topic} that starts with the word {word}.",
        _rule("starts_with", text=word),
    )


def _question(_: Random, topic: str) -> tuple[str, Mapping[str, Any]]:
    return f"Ask one short question about {topic}.", _rule("ends_with", text="?")


def _few_words(draw: Random, topic: str) -> tuple[str, Mapping[str, Any]]:
    most = draw.randint(3, 8)
    return f"Describe {topic} in at most {most} words.", _rule("words", most=most)


def _one_word(_: Random, topic: str) -> tuple[str, Mapping[str, Any]]:
    return f"Describe {topic} with exactly one word.", _rule("words", count=1)


def _without(draw: Random, topic: str) -> tuple[str, Mapping[str, Any]]:
    word = topic.rsplit(maxsplit=1)[-1]
    said = draw.choice(("Do not use the word", "Avoid the word"))
    return f"Write a sentence about {topic}. {said} {word}.", _rule("without", text=word)


def _no_comma(_: Random, topic: str) -> tuple[str, Mapping[str, Any]]:
    return f"Write a sentence about {topic} without any comma.", _rule("without", text=",")


def _listed(draw: Random, topic: str) -> tuple[str, Mapping[str, Any]]:
    items = draw.randint(2, 3)
    words = "two" if items == 2 else "three"
    return (
        f"Name {words} words that fit {topic}, separated by commas. Write nothing else.",
        _rule("list", items=items),
    )


def _bullets(draw: Random, topic: str) -> tuple[str, Mapping[str, Any]]:
    count = draw.randint(2, 3)
    words = "two" if count == 2 else "three"
    return (
        f"Name {words} things about {topic} as bullet points. Start each line with '- '.",
        {"kind": "regex", "pattern": rf"^(?:- .+\n){{{count - 1},}}- "},
    )


def _quoted(_: Random, topic: str) -> tuple[str, Mapping[str, Any]]:
    return (
        f"Write a title for a story about {topic} and put it in double quotation marks.",
        {"kind": "regex", "pattern": r'^"[^"]+"'},
    )


def _numbered(_: Random, topic: str) -> tuple[str, Mapping[str, Any]]:
    return (
        f"Write a numbered list of things that you think of with {topic}.",
        {"kind": "regex", "pattern": r"(?m)^\s*1[.)]\s*\S"},
    )


def _exclaim(_: Random, topic: str) -> tuple[str, Mapping[str, Any]]:
    return (
        f"Write a short and cheerful sentence about {topic} that ends with an exclamation mark.",
        _rule("ends_with", text="!"),
    )


def _said_back(draw: Random, topic: str) -> tuple[str, Mapping[str, Any]]:
    word = draw.choice(_KEYWORDS)
    said = f"{topic} is {word}"
    return f"Repeat exactly, and add nothing: {said}", {"kind": "exact", "answers": [said]}


CONSTRAINTS: tuple[Constraint, ...] = (
    _lower,
    _upper,
    _keyword,
    _starts,
    _question,
    _few_words,
    _one_word,
    _without,
    _no_comma,
    _listed,
    _bullets,
    _quoted,
    _numbered,
    _exclaim,
    _said_back,
)


def instructions(draw: Random) -> Iterator[Draft]:
    """Yield instructions, each with one constraint, in turn."""
    while True:
        for constraint in CONSTRAINTS:
            prompt, check = constraint(draw, draw.choice(TOPICS))
            yield Draft(prompt, check, 24)
