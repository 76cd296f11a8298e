"""What all makers of questions share: a question without its id, and wrong answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

# Tokens of an answer to a choice where an engine has to generate it.
CHOICE_TOKENS = 16


@dataclass(frozen=True)
class Draft:
    """A question without its id and category; see `Question`."""

    prompt: str
    check: Mapping[str, Any]
    max_tokens: int = CHOICE_TOKENS


def choose(prompt: str, right: str, wrong: Sequence[str]) -> Draft:
    """Return a choice between whole answers."""
    return Draft(prompt, {"kind": "choice", "choices": [right, *wrong]})


def others(draw: Random, pool: Sequence[str], right: str, count: int = 3) -> list[str]:
    """Draw wrong answers from a pool that also holds the right one."""
    return draw.sample(sorted(set(pool) - {right}), count)


def numbers_near(draw: Random, right: int, count: int = 3) -> list[str]:
    """Draw wrong numbers near a right one, none below zero."""
    near = [right + step for step in (-10, -3, -2, -1, 1, 2, 3, 10)]
    return [str(number) for number in draw.sample([n for n in near if n >= 0], count)]


def distinct(draw: Random, maker: Iterator[Draft], count: int) -> list[Draft]:
    """Take drafts from an endless maker until so many have different prompts, and shuffle them."""
    found: dict[str, Draft] = {}
    while len(found) < count:
        draft = next(maker)
        found.setdefault(draft.prompt, draft)
    drafts = list(found.values())
    draw.shuffle(drafts)
    return drafts
