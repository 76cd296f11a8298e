"""Find surrogates in scrubbed turns, and what of a row's personal data stands there still."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from tuneline.data.pii.find.entities import Hit
from tuneline.data.tables.rows import Message, Row, with_stand_ins

# What a value begins with: a whole word or a sign, which is not in a word.
_BEGIN = re.compile(r"(?<!\w)(?:\w+|[^\w\s])")
_IN_WORD = re.compile(r"\w")
_NAMES = ("PERSON", "STREET_ADDRESS", "LOCATION")
Span = tuple[int, int, str]
Find = Callable[[str], Sequence[Hit]]


def residual_hits(messages: Sequence[Message], surrogates: Iterable[str], finder: Find) -> int:
    """Count the hits in a row's turns that are not surrogates."""
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


def overlaps(hit: Hit, taken: Sequence[Span]) -> bool:
    """Return True if a hit shares a character with one of some spans, in order without overlaps."""
    before = bisect_left(taken, hit.end, key=lambda span: span[0])
    return before > 0 and hit.start < taken[before - 1][1]


def places(text: str, values: Mapping[str, str]) -> list[Span]:
    """Return the spans of values in a text: whole words, the longest value first, no overlaps."""
    begun: defaultdict[str, set[int]] = defaultdict(set)
    for value in values:
        if begin := _BEGIN.match(value):
            begun[begin[0]].add(len(value))
    spans: list[Span] = []
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


def left_values(text: str, replaced: Iterable[tuple[str, str]]) -> list[Span]:
    """Return the spans of what identifies somebody by values that were replaced elsewhere.

    It is a whole value of at least four digits, or of several words, in upper or lower case; a run
    of at least four digits of any value but a date, if it is no year or amount; and a capitalised
    word of a name, within a sentence: "Will you?" and "mark" are ordinary words, whoever is called
    so.

    Args:
        text: a text.
        replaced: entity and value of each replaced value.
    """
    anywhere: dict[str, str] = {}
    names: dict[str, str] = {}
    for entity, value in replaced:
        words = re.findall(r"\w+", value)
        if sum(map(str.isdecimal, value)) > 3 or len(words) > 1:
            anywhere[value.strip().lower()] = entity
        runs = re.findall(r"\d{4,}", value) if entity not in ("DATE", "BIRTH_DATE") else ()
        anywhere.update((n, entity) for n in runs if not re.fullmatch(r"(?:19|20)\d\d", n))
        if entity in _NAMES and (entity == "PERSON" or len(words) == 1):
            names.update((w, entity) for w in words if len(w) > 2 and w.istitle())
    lowered = text.lower()
    spans = places(lowered if len(lowered) == len(text) else text, anywhere)
    spans = [span for span in spans if not _is_amount(text, *span[:2])]
    taken = sorted(spans)
    spans += [
        span
        for span in places(text, names)
        if not _begins_sentence(text, span[0]) and not overlaps(Hit(*span), taken)
    ]
    return sorted(spans)


def _is_amount(text: str, start: int, end: int) -> bool:
    """Return True for a plain number that is a price, a share or a part of a longer number."""
    if not text[start:end].isdecimal():
        return False
    before, after = text[max(0, start - 2) : start].rstrip(), text[end : end + 2]
    return before[-1:] in tuple("$€£") or bool(re.match(r"[.,]\d| ?[%€£$]", after))


def _begins_sentence(text: str, start: int) -> bool:
    before = text[max(0, start - 20) : start].rstrip(" \t\"'“‘(*-")
    return not before or before[-1] in ".!?:\n"
