"""Find surrogates in scrubbed turns, and the pattern hits that are none of them."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from tuneline.data.pii.hits import Hit
from tuneline.data.pii.patterns import find
from tuneline.data.tables.rows import Message, Row, with_stand_ins

# What a value begins with: a whole word or a sign, which is not in a word.
_BEGIN = re.compile(r"(?<!\w)(?:\w+|[^\w\s])")
_IN_WORD = re.compile(r"\w")
Find = Callable[[str], Sequence[Hit]]


def residual_hits(
    messages: Sequence[Message], surrogates: Iterable[str], finder: Find = find
) -> int:
    """Count the pattern hits in a row's turns that are not surrogates."""
    values = dict.fromkeys(surrogates, "")
    count = 0
    for message in messages:
        hits = finder(message["content"])
        if hits:
            taken = places(message["content"], values)
            count += sum(not overlaps(hit, taken) for hit in hits)
    return count


def surrogates_of(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the surrogates in each scrubbed row that holds any, by its id."""
    return {
        row.row_id: [row.messages[s.turn]["content"][s.start : s.end] for s in row.stand_ins]
        for row in with_stand_ins(rows)
    }


def overlaps(hit: Hit, taken: Sequence[tuple[int, int, str]]) -> bool:
    """Return True if a hit shares a character with one of some spans, in order without overlaps."""
    before = bisect_left(taken, hit.end, key=lambda span: span[0])
    return before > 0 and hit.start < taken[before - 1][1]


def places(text: str, values: Mapping[str, str]) -> list[tuple[int, int, str]]:
    """Return the spans of values in a text: whole words, the longest value first, no overlaps."""
    begun: defaultdict[str, set[int]] = defaultdict(set)
    for value in values:
        if begin := _BEGIN.match(value):
            begun[begin[0]].add(len(value))
    spans: list[tuple[int, int, str]] = []
    at = 0
    for begin in _BEGIN.finditer(text) if begun else ():
        start = begin.start()
        for length in sorted(begun.get(begin[0], ()), reverse=True) if start >= at else ():
            value = text[start : start + length]
            at = start + length
            if value in values and not _IN_WORD.match(text, at):
                spans.append((start, at, values[value]))
                break
            at = start
    return spans
