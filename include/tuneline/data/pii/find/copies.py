"""Read a row as one: what stands in several of its turns is marked alike in all of them.

A value of a JSON answer, or an argument of a tool, says nothing about itself ("clio"): where it is
copied from an earlier turn, it is marked as it is there. Any other value that was found is marked
wherever it, or a telling part of it, stands again, as whole words in any case; surrogates are drawn
word by word, so that each part gets one surrogate in every turn.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from tuneline.data.pii.find.entities import PLACES, Hit, resolve
from tuneline.data.pii.find.token_model import UNSPACED, Word
from tuneline.machine.linear_pattern import LinearPattern
from tuneline.machine.redaction import SECRETS

_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
# A string or a number that is a value in JSON.
_VALUE = LinearPattern(r'(?:[:,]\s?|\[)("[^"]*"|-?\d[\d.]*)')
# Places of a word in a row that are compared.
_MOST_PLACES = 64
# A word of at most this many characters, or a number of fewer digits, may repeat by chance.
_SHORT = 3
# What a model finds in one turn counts in all, and so does a number of so many digits.
_SURE, _LONG_NUMBER = frozenset({"PERSON", "EMAIL_ADDRESS", "URL", "LOCATION"}), 6
_DATES = frozenset({"DATE", "BIRTH_DATE"})
# Surrogates of all others are drawn word by word, so that a part follows the whole.
_WHOLE = frozenset({"EMAIL_ADDRESS", "URL", "IP_ADDRESS", "MAC_ADDRESS", *SECRETS})
Key = tuple[str, ...]


class Copy(NamedTuple):
    """Words `first` to `last` of a piece, which stand in an earlier one from `start` on."""

    first: int
    last: int
    source: Piece
    start: int


@dataclass(eq=False)
class Piece:
    """A text of a row as detectors read it; `words` are a model's."""

    turn: int
    text: str
    words: Sequence[Word] = ()
    # True for an answer of the assistant, or one of its values if it is JSON.
    answer: bool = False
    # In order, without overlaps.
    hits: list[Hit] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    # Entity types that the turn is asked for.
    asked: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        spans = [match.span() for match in _WORD.finditer(self.text)]
        self._starts, self._ends = [start for start, _ in spans], [end for _, end in spans]
        self.said = tuple(self.text[start:end].casefold() for start, end in spans)
        self._kinds = {word.start: word.entity for word in self.words}

    def within(self, start: int, end: int) -> tuple[int, int]:
        """Return the numbers of the words in a span of the text."""
        return bisect_right(self._ends, start), bisect_left(self._starts, end)

    def copied(self) -> set[int]:
        """Return the numbers of the words that are in a copy."""
        return {at for copy in self.copies for at in range(copy.first, copy.last)}

    def marked(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, int, Hit]]:
        """Yield the hits that share one of some words, with the numbers of their own."""
        low = self._starts[first] if first < len(self.said) else len(self.text)
        at = bisect_right(self.hits, low, key=lambda hit: hit.end)
        for hit in self.hits[at:]:
            begin, end = self.within(hit.start, hit.end)
            if last is not None and begin >= last:
                return
            if begin < end:
                yield begin, end, hit

    def cut_at(self, border: int) -> str | None:
        """Return the entity of the hit that goes on over a border before a word."""
        found = next(self.marked(border - 1, border), None) if border else None
        return found[2].entity if found is not None and found[1] > border else None

    def hit_of(self, first: int, last: int, entity: str) -> Hit:
        """Return a hit of some words."""
        return Hit(self._starts[first], self._ends[last - 1], entity)

    def named(self, at: int, kinds: frozenset[str] = frozenset({"PERSON"})) -> bool:
        """Return True if a model knows a word as a name, or it has a capital within a sentence."""
        start = self._starts[at]
        before = self.text[max(0, start - 3) : start].strip(" \"'(")[-1:]
        inside = before not in ("", *".?!\n")
        return self._kinds.get(start) in kinds or (self.text[start].isupper() and inside)

    def telling(self, first: int, last: int) -> bool:
        """Return True if some words can hardly be there by chance."""
        digits = sum(map(str.isdecimal, "".join(self.said[first:last])))
        names = any(
            self.named(at, PLACES) for at in range(first, last) if len(self.said[at]) >= _SHORT
        )
        return digits >= _SHORT or names or (digits > 0 and last - first > 1)


class Places:
    """Where the words of a row stand; a turn is read after the turns before it."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._places: defaultdict[str, list[tuple[Piece, int]]] = defaultdict(list)
        for piece in pieces:
            for at, word in enumerate(piece.said):
                if len(self._places[word]) < _MOST_PLACES:
                    self._places[word].append((piece, at))

    def copies(self, piece: Piece) -> Iterator[Copy]:
        """Yield what an answer has from earlier turns: all of it, or the values of JSON in it."""
        whole = self._copy(piece, 0, len(piece.said)) if piece.answer else None
        if whole is not None:
            yield whole
            return
        for span in _VALUE.spans(piece.text):
            if copy := self._copy(piece, *piece.within(*span)):
                yield copy

    def _copy(self, piece: Piece, first: int, last: int) -> Copy | None:
        """Return where words come from: where no hit is cut, if so, and as late as may be.

        A part of what is drawn whole, such as an e-mail address, is no copy.
        """
        found: list[tuple[bool, int, Copy]] = []
        for source, start in self._of(piece.said[first:last], piece.turn):
            cut = {source.cut_at(start), source.cut_at(start + last - first)} - {None}
            if cut.isdisjoint(_WHOLE):
                found.append((bool(cut), -source.turn, Copy(first, last, source, start)))
        return min(found, key=lambda entry: entry[:2])[2] if found else None

    def own_words(self, piece: Piece) -> Iterator[Word]:
        """Yield a model's words but copies and short numbers that no turn before marks."""
        copied = piece.copied()
        for word in piece.words:
            first, last = piece.within(word.start, word.end)
            if copied.isdisjoint(range(first, last)) and not self._is_known(piece, word):
                yield word

    def _is_known(self, piece: Piece, word: Word) -> bool:
        """Return True if a turn before has a word that is not marked there."""
        first, last = piece.within(word.start, word.end)
        key = piece.said[first:last]
        digits = sum(map(str.isdecimal, "".join(key)))
        if word.entity in _SURE or digits >= _LONG_NUMBER:
            return False
        before = [*self._of(key, piece.turn)]
        return bool(before) and not any(any(p.marked(at, at + len(key))) for p, at in before)

    def _of(self, key: Key, before: int) -> Iterator[tuple[Piece, int]]:
        """Yield where words stand in the turns before a turn."""
        counts = [len(self._places[word]) for word in key]
        offset = counts.index(min(counts)) if key else 0
        for piece, at in self._places[key[offset]] if key else ():
            start = at - offset
            if piece.turn < before and start >= 0 and piece.said[start : start + len(key)] == key:
                yield piece, start


def agree(pieces: Sequence[Piece]) -> None:
    """Mark each value wherever it stands in a row, and each copy as what it was copied from."""
    values = _Values(pieces)
    for piece in pieces if values.entities else ():
        piece.hits = resolve([*piece.hits, *values.again(piece)])
    for piece in pieces:
        copied = piece.copied()
        own = [h for at, end, h in piece.marked() if not copied.issuperset(range(at, end))]
        made = [hit for copy in piece.copies for hit in _projected(piece, copy)]
        piece.hits = resolve([*own, *made])


def _projected(piece: Piece, copy: Copy) -> Iterator[Hit]:
    """Yield the hits of what a copy was copied from, as far as it goes."""
    by = copy.first - copy.start
    for first, last, hit in copy.source.marked(copy.start, copy.last - by):
        low, high = max(first + by, copy.first), min(last + by, copy.last)
        yield piece.hit_of(low, high, hit.entity)


class _Values:
    """The values of a row by their words, and which words follow each other in them."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.entities: dict[Key, str] = {}
        # Words of values whose surrogates are drawn word by word.
        self._parts: dict[str, str] = {}
        self._pairs: set[tuple[str, str]] = set()
        # Values of one word, as they are written.
        self._written: set[str] = set()
        for piece in pieces:
            for first, last, hit in piece.marked():
                key = piece.said[first:last]
                self.entities.setdefault(key, hit.entity)
                self._pairs.update(pairwise(key))
                for word in key if hit.entity not in _WHOLE else ():
                    self._parts.setdefault(word, hit.entity)
                if last - first == 1:
                    self._written.add(piece.text[hit.start : hit.end])
        # A number may be written in one word.
        self.entities = {("".join(key),): e for key, e in self.entities.items()} | self.entities

    def again(self, piece: Piece) -> Iterator[Hit]:
        """Yield where values, or telling parts of them, stand in a piece."""
        first = 0
        for last in range(1, len(piece.said) + 1):
            if piece.said[last - 1 : last + 1] not in self._pairs:
                key = piece.said[first:last]
                entity = self.entities.get(key) or next(
                    (self._parts[word] for word in key if word in self._parts), None
                )
                if entity and self._counts(piece, first, last, entity):
                    yield piece.hit_of(first, last, entity)
                first = last

    def _counts(self, piece: Piece, first: int, last: int, entity: str) -> bool:
        """Return True if a value, or a part of one, that stands somewhere again is no accident."""
        key = piece.said[first:last]
        if entity in _WHOLE or (key in self.entities and len(key) > 1):
            return key in self.entities
        written = piece.hit_of(first, last, "")
        if len(key[0]) > 1 and piece.text[written.start : written.end] in self._written:
            return True
        if entity == "PERSON":
            return any(piece.named(at) for at in range(first, last))
        if key in self.entities:
            return len(key[0]) > _SHORT or piece.named(first, PLACES)
        return piece.telling(first, last) and (entity not in _DATES or len(key) > 1)
