"""Visit the texts of a row: whole turns, and the strings inside a JSON answer."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import NamedTuple

from tuneline.data.conversations.answers import map_texts
from tuneline.data.near_duplicates.compared_text import Affixes, common_affixes
from tuneline.data.tables.rows import Message

# A system prompt of at least this many rows belongs to the dataset, not to a person.
SHARED_ROWS = 20
# A character with the accents that follow it, and what stands for one in JSON within a turn; there
# a quotation mark that is escaped does not end a string.
_CLUSTER = re.compile("(?s).[\u0300-\u036f]*")
_ESCAPED = re.compile(r"(?s)\\(?:u[0-9a-fA-F]{4}|[\"\\/bfnrt])|.[\u0300-\u036f]*")
_ESCAPES = {
    '\\"': "'",
    "\\\\": "\\",
    "\\/": "/",
    **dict.fromkeys(map("\\{}".format, "bfnrt"), "\n"),
}
_QUOTES = {"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "−": "-"}


@dataclass(frozen=True)
class Shared:
    """System prompts of many rows, and what nearly all user turns begin and end with."""

    systems: frozenset[str] = frozenset()
    affixes: Affixes = field(default_factory=Affixes)


def shared_parts(batch: Iterable[Sequence[Message]]) -> Shared:
    """Return the system prompts that many rows have, and what nearly all user turns share."""
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for message in chain.from_iterable(batch):
        said[message["role"]][message["content"]] += 1
    many = (text for text, count in said["system"].items() if count >= SHARED_ROWS)
    return Shared(frozenset(many), common_affixes(said["user"]))


class Text(NamedTuple):
    """A text of a row: a turn, or a value of a JSON answer, and the number of its turn."""

    turn: int
    text: str


def texts_of(messages: Sequence[Message], label_field: str | None) -> list[Text]:
    """Return the texts of a row, in the order in which `map_texts` visits them."""
    found: list[Text] = []
    for turn, message in enumerate(messages):

        def note(text: str, turn: int = turn) -> str:
            found.append(Text(turn, text))
            return text

        map_texts(message, note, label_field)
    return found


class Plain(NamedTuple):
    """A text as detectors read it, and where its characters stand in the original."""

    text: str
    starts: Sequence[int] | None = None
    ends: Sequence[int] = ()

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the characters of the original for a span that is not empty."""
        return (start, end) if self.starts is None else (self.starts[start], self.ends[end - 1])


def plain(text: str) -> Plain:
    """Return a text without invisible characters, in the usual form of each character.

    Accents are part of their letters (NFKC), digits of any script are ASCII ones, and dashes,
    quotes and spaces are the plain ones. Lone surrogates become question marks. What JSON escapes
    is one character.
    """
    if text.isascii() and not escapes(text):
        return Plain(text)
    made = [
        (char, *cluster.span())
        for cluster in (_ESCAPED if escapes(text) else _CLUSTER).finditer(text)
        for char in "".join(map(_usual, unicodedata.normalize("NFKC", _unescaped(cluster[0]))))
    ]
    return Plain(
        "".join(char for char, *_ in made), [at for _, at, _ in made], [e for *_, e in made]
    )


def escapes(text: str) -> bool:
    """Return True if a text may hold JSON with escapes."""
    return '"' in text and "\\" in text


def said(text: str, start: int, end: int) -> str:
    """Return a span of a text, without escapes of JSON if it holds some."""
    value = text[start:end]
    if "\\" in value and escapes(text):
        return "".join(_unescaped(cluster[0]) for cluster in _ESCAPED.finditer(value))
    return value


def _unescaped(cluster: str) -> str:
    """Return the character that an escape of JSON stands for."""
    is_code = len(cluster) == 6 and cluster.startswith("\\u")
    return chr(int(cluster[2:], 16)) if is_code else _ESCAPES.get(cluster, cluster)


@cache
def _usual(char: str) -> str:
    """Return the plain form of a character, nothing for an invisible one."""
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    forms = {"Cf": "", "Cs": "?", "Pd": "-", "Zs": " ", "Pi": "'", "Pf": "'"}
    return _QUOTES.get(char) or forms.get(category, char)
