"""Read a row as one: what stands in several of its turns is marked alike in all of them.

A value of a JSON answer, or an argument of a tool, says nothing about itself ("clio"): where it is
copied from an earlier turn, it is marked as it is there. Any other value that was found is marked
wherever it stands again, as whole words in any case. Where a value is a part of a longer one, the
longer one is cut, so that each part gets one surrogate in every turn.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from os.path import commonprefix
from typing import NamedTuple

from tuneline.data.pii.find.entities import PLACES, Hit
from tuneline.data.pii.find.token_model import UNSPACED, Word
from tuneline.machine.linear_pattern import LinearPattern
from tuneline.machine.redaction import SECRETS

_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
# A string or a number that is a value in JSON.
_VALUE = LinearPattern(r'(?:[:,]\s?|\[)("[^"]*"|-?\d[\d.]*)')
# Places of a word in a row that are compared, longer values that hold it, and words of a value.
_MOST_PLACES, _MOST_VALUES, _MOST_WORDS = 64, 16, 24
# A word of at most this many characters, or a number of fewer digits, may repeat by chance.
_SHORT = 3
# What a model finds in one turn counts in all, and so does a number of so many digits.
_SURE, _LONG_NUMBER = frozenset({"PERSON", "EMAIL_ADDRESS", "URL", "LOCATION"}), 6
# Names and numbers get surrogates word by word, so that a part follows the whole; these are cut.
_DATES = frozenset({"DATE", "BIRTH_DATE"})
_CUT = PLACES - {"POSTAL_CODE"} | _DATES
# Surrogates of these are drawn whole.
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

    def cut_at(self, border: int) -> tuple[int, int, Hit] | None:
        """Return the hit that goes on over a border before a word."""
        found = next(self.marked(border - 1, border), None) if border else None
        return found if found is not None and found[1] > border else None

    def hit_of(self, first: int, last: int, entity: str) -> Hit:
        """Return a hit of some words."""
        return Hit(self._starts[first], self._ends[last - 1], entity)

    def place_of(self, first: int, last: int) -> str | None:
        """Return which part of an address a model takes some words for, None if it knows none."""
        kinds = Counter(filter(None, map(self._kinds.get, self._starts[first:last])))
        found = max(kinds, key=lambda kind: (kinds[kind], kind), default=None)
        return found if found is None or found in PLACES else "STREET_ADDRESS"

    def named(self, at: int, kinds: frozenset[str] = frozenset({"PERSON"})) -> bool:
        """Return True if a model knows a word as a name, or it has a capital within a sentence."""
        start = self._starts[at]
        before = self.text[max(0, start - 3) : start].strip(" \"'(")[-1:]
        inside = before not in ("", *".?!\n")
        return self._kinds.get(start) in kinds or (self.text[start].isupper() and inside)

    def telling(self, first: int, last: int) -> bool:
        """Return True if some words can hardly be there by chance."""
        digits = sum(map(str.isdecimal, "".join(self.said[first:last])))
        names = [at for at in range(first, last) if self.named(at, PLACES)]
        if first not in names and self.said[first].isalpha() and len(self.said[first]) <= _SHORT:
            # "in Porto" has its value in the second word.
            return False
        long = any(len(self.said[at]) >= _SHORT for at in names)
        return digits >= _SHORT or long or (digits > 0 and last - first > 1)


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

        What would cut a value that is drawn whole, such as an e-mail address, is no copy.
        """
        found: list[tuple[int, int, int, Copy]] = []
        for source, start in self._of(piece.said[first:last], piece.turn):
            borders = (source.cut_at(start), source.cut_at(start + last - first))
            cut = [hit.entity for *_, hit in filter(None, borders)]
            if _WHOLE.isdisjoint(cut):
                found.append((len(cut), -source.turn, len(found), Copy(first, last, source, start)))
        return min(found)[-1] if found else None

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
    for piece in pieces:
        for copy in piece.copies:
            _carry_back(piece, copy)
    values = _Values(pieces)
    for piece in pieces if values.entities else ():
        piece.hits = values.mark(piece)
    for piece in pieces:
        copied = piece.copied()
        own = [h for at, end, h in piece.marked() if copied.isdisjoint(range(at, end))]
        made = [hit for copy in piece.copies for hit in _projected(piece, copy)]
        piece.hits = sorted([*own, *made], key=lambda hit: hit.start)


def _carry_back(piece: Piece, copy: Copy) -> None:
    """Mark what has a form in a copy where it was copied from, if nothing is marked there."""
    source, by = copy.source, copy.start - copy.first
    for first, last, hit in piece.marked(copy.first, copy.last):
        low, high = max(first, copy.first) + by, min(last, copy.last) + by
        if not any(source.marked(low, high)):
            made = source.hit_of(low, high, hit.entity)
            source.hits = sorted([*source.hits, made], key=lambda other: other.start)


def _projected(piece: Piece, copy: Copy) -> Iterator[Hit]:
    """Yield the hits of what a copy was copied from, as far as it goes."""
    by = copy.first - copy.start
    for first, last, hit in copy.source.marked(copy.start, copy.last - by):
        low, high = max(first + by, copy.first), min(last + by, copy.last)
        yield piece.hit_of(low, high, hit.entity)


class _Values:
    """The values of a row by their words, cut so that none is a part of another."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.entities: dict[Key, str] = {}
        self._first: dict[Key, tuple[Piece, int]] = {}
        # Values of one word, as they are written.
        self._written: set[str] = set()
        for piece in pieces:
            for first, last, hit in piece.marked():
                key = piece.said[first:last]
                self.entities.setdefault(key, hit.entity)
                self._first.setdefault(key, (piece, first))
                if last - first == 1:
                    self._written.add(piece.text[hit.start : hit.end])
        self._names: dict[Key, str] = {
            (word,): entity
            for key, entity in self.entities.items()
            for word in key
            if entity == "PERSON" and len(word) >= _SHORT
        }
        cuts = self._cuts(pieces)
        self._parts = {key: [*self._parts_of(key, cuts[key])] for key in cuts}
        for key, parts in self._parts.items():
            self.entities.update((key[first:last], entity) for first, last, entity in parts)
        # A number may be written in one word.
        self._anywhere: dict[Key, str] = {
            ("".join(key),): entity for key, entity in self.entities.items()
        }
        self._anywhere |= self.entities | self._names
        self._sizes = _sizes(self._anywhere)

    def _cuts(self, pieces: Sequence[Piece]) -> dict[Key, set[int]]:
        """Return before which of its words each longer value is cut."""
        cuts: defaultdict[Key, set[int]] = defaultdict(set)
        for copy in (copy for piece in pieces for copy in piece.copies):
            for border in (copy.start, copy.start + copy.last - copy.first):
                if found := copy.source.cut_at(border):
                    first, last, _ = found
                    cuts[copy.source.said[first:last]].add(border - first)
        for key, first, last in [*self._shared(pieces)]:
            cuts[key] |= {first, last}
            # Where nothing is cut, the words that stand elsewhere are a value as well.
            self.entities.setdefault(key[first:last], self.entities[key])
        made = {key: at for key, at in cuts.items() if self.entities[key] in _CUT}
        # A part may be one of another value as well.
        parts = {
            key[i:j] for key, at in made.items() for i, j in pairwise(sorted({0, *at, len(key)}))
        }
        sizes = _sizes(parts)
        for key in self._first.keys() if parts else ():
            for at, size in _found(key[:_MOST_WORDS], parts, sizes):
                if size < len(key) and self.entities[key] in _CUT:
                    made.setdefault(key, set()).update({at, at + size})
        return made

    def _shared(self, pieces: Sequence[Piece]) -> Iterator[tuple[Key, int, int]]:
        """Yield longer values, with the words of each that another turn has without the rest."""
        places: defaultdict[str, list[tuple[Key, int]]] = defaultdict(list)
        for key, entity in self.entities.items():
            for at, word in enumerate(
                key[:_MOST_WORDS] if entity not in _WHOLE | _DATES | {"PERSON"} else ()
            ):
                places[word].append((key, at))
        for piece in pieces if places else ():
            owner = {at: (i, j) for i, j, _ in piece.marked() for at in range(i, j)}
            copied = piece.copied()
            for at, word in enumerate(piece.said):
                own = owner.get(at, (at, at))
                for key, start in places.get(word, ())[:_MOST_VALUES]:
                    if self._first[key][0].turn == piece.turn:
                        continue
                    said = piece.said[at : at + _MOST_WORDS]
                    run = commonprefix([said, key[start:]])  # noqa: RUF071 - words, no paths
                    apart = len(run) < len(key) and piece.said[slice(*own)] != key
                    telling = at in owner or piece.telling(at, at + len(run))
                    if apart and telling and at not in copied:
                        yield key, start, start + len(run)

    def _parts_of(self, key: Key, cuts: set[int]) -> Iterator[tuple[int, int, str]]:
        """Yield the parts of a cut value; what is no part of an address is none."""
        piece, begin = self._first[key]
        for first, last in pairwise(sorted({0, *cuts, len(key)})):
            entity = self._names.get(key[first:last], self.entities[key])
            if entity in PLACES:
                entity = piece.place_of(begin + first, begin + last) or ""
            if entity:
                yield first, last, entity

    def mark(self, piece: Piece) -> list[Hit]:
        """Return where values stand in a piece: its hits, cut as values are, and all others."""
        found: list[Hit] = []
        taken: set[int] = set()

        def take(key: Key, at: int, entity: str, hit: Hit | None = None) -> None:
            taken.update(range(at, at + len(key)))
            for first, last, kind in self._parts.get(key, ()):
                found.append(piece.hit_of(at + first, at + last, kind))
            if key not in self._parts:
                made = hit or piece.hit_of(at, at + len(key), entity)
                found.append(Hit(made.start, made.end, entity))

        own = {(first, last): hit for first, last, hit in piece.marked()}
        places = _found(piece.said, self._anywhere, self._sizes)
        for at, size in sorted(places, key=lambda place: -place[1]):
            key, span = piece.said[at : at + size], (at, at + size)
            again = span in own or self._counts(piece, at, key)
            cut = piece.cut_at(at) or piece.cut_at(at + size)
            if again and cut is None and taken.isdisjoint(range(*span)):
                take(key, at, self._anywhere[key], own.get(span))
        for (first, last), hit in own.items():
            if taken.isdisjoint(range(first, last)):
                take(piece.said[first:last], first, hit.entity, hit)
        return sorted(found, key=lambda hit: hit.start)

    def _counts(self, piece: Piece, at: int, key: Key) -> bool:
        """Return True if a value that stands somewhere again is no accident."""
        written = piece.hit_of(at, at + 1, "")
        if len(key) > 1 or (
            len(key[0]) > 1 and piece.text[written.start : written.end] in self._written
        ):
            return True
        if self._anywhere[key] == "PERSON":
            return piece.named(at)
        return len(key[0]) > _SHORT or piece.named(at, PLACES)


def _sizes(keys: Iterable[Key]) -> dict[str, list[int]]:
    """Return the numbers of words of values by their first word."""
    sizes: defaultdict[str, set[int]] = defaultdict(set)
    for key in keys:
        if len(key) <= _MOST_WORDS:
            sizes[key[0]].add(len(key))
    return {word: sorted(some) for word, some in sizes.items()}


def _found(
    said: Sequence[str], keys: Collection[Key], sizes: Mapping[str, Sequence[int]]
) -> Iterator[tuple[int, int]]:
    """Yield where values begin in some words, and how many words they have."""
    for at, word in enumerate(said):
        for size in sizes.get(word, ()):
            if tuple(said[at : at + size]) in keys:
                yield at, size
