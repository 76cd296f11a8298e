"""Find the places in the rows of a dataset where a value can be planted."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random

from tuneline.data.conversations.answers import answer_object
from tuneline.data.near_duplicates.boilerplate import Affixes, common_affixes
from tuneline.data.pii.canaries.canary import group_name
from tuneline.data.pii.canaries.lists import lists
from tuneline.data.pii.canaries.register import numbers_in
from tuneline.data.pii.languages import likeliest
from tuneline.data.tables.rows import Message

# Carriers are looked for in at most this many rows, drawn at random: enough variety, and the turns
# around the planted ones, which are then often the same, cost the detector little.
MOST_ROWS = 400
# Words by which a turn asks for something, in the languages with phrases.
_ASKING = re.compile(
    r"(?i)\?|\b(?:what|whats|which|can|could|may|please|need|give|tell|enter|confirm|verify|"
    r"provide|bitte|wie|welche|quel|quelle|cuál|por favor)\b"
)
# A question that lies far from the end of its turn, or a long turn, asks for nothing in particular.
_LONGEST_QUESTION = 240
_MAIL = re.compile(r"(?<!\S)[^\s@]+@[^\s@]+\.\w+")


@dataclass(frozen=True)
class Spot:
    """A place for a value: characters start to end of a turn of a row; empty to insert there."""

    row: int
    turn: int
    start: int
    end: int


@dataclass
class Carriers:
    """The rows of a dataset and the places in them.

    Attributes:
        rows: turns of each row.
        affixes: text that nearly all user turns share, in which nothing is planted.
        answers: user turns after a question for a kind, by its group.
        numbers: numbers of the dataset.
        mails: e-mail addresses of the dataset.
        turns: user turns by language; and turns of the assistant that are plain text.
    """

    rows: Sequence[Sequence[Message]]
    affixes: Affixes
    answers: dict[str, list[Spot]] = field(default_factory=lambda: defaultdict(list))
    numbers: list[Spot] = field(default_factory=list)
    mails: list[Spot] = field(default_factory=list)
    turns: dict[str, list[Spot]] = field(default_factory=lambda: defaultdict(list))
    replies: list[Spot] = field(default_factory=list)


def find_carriers(
    rows: Sequence[Sequence[Message]], languages: Sequence[str], draw: Random
) -> Carriers:
    """Find the places for values in rows.

    Args:
        rows: turns of each row, at least one row.
        languages: declared languages that have phrases.
        draw: source of chance, for the rows of a large dataset.
    """
    chosen = [rows[n] for n in sorted(draw.sample(range(len(rows)), min(MOST_ROWS, len(rows))))]
    users = [m["content"] for row in chosen for m in row if m["role"] == "user"]
    found = Carriers(chosen, common_affixes(users))
    nouns = _nouns(tuple(languages))
    for number, row in enumerate(chosen):
        for turn, message in enumerate(row):
            if message["role"] == "user":
                _note_user_turn(found, nouns, languages, number, turn)
            elif message["role"] == "assistant" and answer_object(message["content"]) is None:
                found.replies.append(Spot(number, turn, 0, len(message["content"])))
    return found


def _note_user_turn(
    found: Carriers,
    nouns: dict[str, re.Pattern[str]],
    languages: Sequence[str],
    number: int,
    turn: int,
) -> None:
    row = found.rows[number]
    text = row[turn]["content"]
    start, end = found.affixes.cut(text)
    spot = Spot(number, turn, start, end)
    language = likeliest(text, languages) if len(languages) > 1 else languages[0]
    found.turns[language].append(spot)
    for match in numbers_in(text):
        if start <= match.start() and match.end() <= end:
            found.numbers.append(Spot(number, turn, match.start(), match.end()))
    found.mails += [
        Spot(number, turn, match.start(), match.end()) for match in _MAIL.finditer(text)
    ]
    if turn == 0 or row[turn - 1]["role"] != "assistant":
        return
    question = row[turn - 1]["content"]
    if _asks(question):
        for group in _asked_for(question, nouns):
            found.answers[group].append(spot)


def _asks(turn: str) -> bool:
    """Return True if a turn of the assistant asks for something, and for little else."""
    return len(turn) <= _LONGEST_QUESTION and _ASKING.search(turn) is not None


def asks_for_data(turn: str) -> bool:
    """Return True if a turn of the assistant asks for personal data, in any language known."""
    return _asks(turn) and any(
        pattern.search(turn) for pattern in _nouns(tuple(lists("phrases"))).values()
    )


def _asked_for(question: str, nouns: dict[str, re.Pattern[str]]) -> list[str]:
    """Return the groups that a question names; `email address` does not ask for an address."""
    named = [
        (m.span(), group) for group, pattern in nouns.items() for m in pattern.finditer(question)
    ]
    return sorted(
        {
            group
            for (start, end), group in named
            if not any(s <= start and end <= e and (s, e) != (start, end) for (s, e), _ in named)
        }
    )


@cache
def _nouns(languages: tuple[str, ...]) -> dict[str, re.Pattern[str]]:
    """Return a pattern of the nouns of each group."""
    phrases = lists("phrases")
    return {
        group_name(kind, language): re.compile(
            r"(?i)\b(?:" + "|".join(map(re.escape, _longest_first(entry["nouns"]))) + r")\b"
        )
        for language in languages
        for kind, entry in phrases[language]["kinds"].items()
    }


def _longest_first(nouns: Sequence[str]) -> list[str]:
    return sorted(nouns, key=len, reverse=True)
