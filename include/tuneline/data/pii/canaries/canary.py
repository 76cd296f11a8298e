"""Define a canary: a row of the dataset with a made-up value of a kind in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.data.pii.languages import ENGLISH
from tuneline.data.tables.rows import Message

# How a value is given. Mistyped: a digit or a sign too many, too few or wrong, so that checksums
# fail. Partial: some of its digits, or one of its parts. Obfuscated: spelled, spaced or in words.
# Split: over several turns.
DISCLOSED, BARE, MISTYPED, PARTIAL, OBFUSCATED, SPLIT = FORMS = (
    "disclosed",
    "bare",
    "mistyped",
    "partial",
    "obfuscated",
    "split",
)
# Where it stands: after a question of the dataset, in place of a number or address of the dataset,
# between the sentences of a turn, or as a whole turn.
ANSWER, REPLACED, INSERTED, MESSAGE = PLACES = ("answer", "replaced", "inserted", "message")

_TOKEN = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Value:
    """A made-up value.

    Attributes:
        parts: its text; more than one part if it is to be split over turns.
        public: its words that identify nobody (`street`, `gmail`), casefolded.
    """

    parts: tuple[str, ...]
    public: frozenset[str] = frozenset()

    @property
    def text(self) -> str:
        """The whole value."""
        return " ".join(self.parts)


@dataclass(frozen=True)
class Token:
    """A word or run of digits: its turn, and its number among the tokens of that turn."""

    turn: int
    number: int


@dataclass(frozen=True)
class Canary:
    """A row with a made-up value.

    Attributes:
        kind: kind of the value, an entity type or a part of one (see `kinds`).
        language: language of the words around it.
        form: one of `FORMS`.
        place: one of `PLACES`.
        messages: turns of the row.
        probe: the token of the value that is looked for, drawn among those that identify. One for
            each canary, so that leaks are independent and their number is binomial.
    """

    kind: str
    language: str
    form: str
    place: str
    messages: list[Message]
    probe: Token

    @property
    def group(self) -> str:
        """The group that is measured together."""
        return group_name(self.kind, self.language)


def group_name(kind: str, language: str) -> str:
    """Return the name of a group: the kind, with its language unless English."""
    return kind if language == ENGLISH else f"{kind}.{language}"


def tokens_of(text: str) -> list[str]:
    """Return the words and runs of digits of a text, casefolded."""
    return [match.casefold() for match in _TOKEN.findall(text)]


def identifying(text: str, start: int, end: int, public: frozenset[str]) -> list[int]:
    """Return the numbers of the tokens in a span of a text that are not public."""
    return [
        number
        for number, match in enumerate(_TOKEN.finditer(text))
        if match.start() < end and match.end() > start and match[0].casefold() not in public
    ]


def readable(canary: Canary, scrubbed: Sequence[Message]) -> bool:
    """Return True if the probe of a canary still stands in the scrubbed row.

    The turn before and after scrubbing are aligned word by word, so that an equal word elsewhere
    in the turn is not taken for it. Case and punctuation make no difference.
    """
    # Unlike the standard library's, its time hardly grows where a word repeats.
    from rapidfuzz.distance import LCSseq

    turn, number = canary.probe.turn, canary.probe.number
    before, after = canary.messages[turn]["content"], scrubbed[turn]["content"]
    if before == after:
        return True
    blocks = LCSseq.opcodes(tokens_of(before), tokens_of(after))
    return any(b.tag == "equal" and b.src_start <= number < b.src_end for b in blocks)
