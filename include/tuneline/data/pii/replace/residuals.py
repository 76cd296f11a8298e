"""Find surrogates in scrubbed turns, and what of a row's personal data stands there still."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from tuneline.data.pii.find.detector import resolve
from tuneline.data.pii.find.entities import Hit
from tuneline.data.tables.rows import Message

# What a value begins with: a whole word or a sign, which is not in a word.
_BEGIN = re.compile(r"(?<!\w)(?:\w+|[^\w\s])")
_IN_WORD = re.compile(r"\w")
# What stands before the first word of a sentence, and what follows a price, share or decimal.
_BEFORE_FIRST = re.compile(r"(?:^|[.!?:\n])[ \t\"'“‘(*-]*\Z")
_AFTER_AMOUNT = re.compile(r"[.,]\d| ?[%€£$]")
_NAMES = ("PERSON", "STREET_ADDRESS", "LOCATION")
Find = Callable[[str], Sequence[Hit]]


def residual_hits(messages: Sequence[Message], surrogates: Iterable[str], finder: Find) -> int:
    """Count the hits in a row's turns that are not surrogates."""
    values, texts = set(surrogates), [message["content"] for message in messages]
    return sum(len(other_hits(text, finder(text), values)) for text in texts)


def other_hits(text: str, hits: Sequence[Hit], surrogates: Iterable[str]) -> list[Hit]:
    """Return the hits in a text that share no character with a surrogate."""
    taken = places(text, dict.fromkeys(surrogates, "")) if hits else []
    starts = [place.start for place in taken]
    before = [bisect_left(starts, hit.end) for hit in hits]
    return [
        hit
        for hit, at in zip(hits, before, strict=True)
        if not at or taken[at - 1].end <= hit.start
    ]


def places(text: str, values: Mapping[str, str]) -> list[Hit]:
    """Return where values (and their entities) stand: whole words, the longest first."""
    begun: defaultdict[str, set[int]] = defaultdict(set)
    for value in values:
        if begin := _BEGIN.match(value):
            begun[begin[0]].add(len(value))
    found: list[Hit] = []
    for begin in _BEGIN.finditer(text) if begun else ():
        start = begin.start()
        ends = (start + length for length in sorted(begun.get(begin[0], ()), reverse=True))
        fits = (end for end in ends if text[start:end] in values and not _IN_WORD.match(text, end))
        if (not found or found[-1].end <= start) and (end := next(fits, 0)):
            found.append(Hit(start, end, values[text[start:end]]))
    return found


def left_values(text: str, replaced: Iterable[tuple[str, str]]) -> list[Hit]:
    """Return what identifies somebody by values that were replaced elsewhere.

    It is a whole value of at least four digits, or of several words, in upper or lower case; a run
    of at least four digits of any value but a date, if it is no year or amount; and a capitalised
    word of a name, within a sentence: "Will you?" and "mark" are ordinary words, whoever is called
    so. `replaced` holds entity and value of each replaced value.
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
    lowered = text.lower() if len(text.lower()) == len(text) else text
    found = [hit for hit in places(lowered, anywhere) if not _is_amount(text, hit)]
    found += [
        hit
        for hit in places(text, names)
        if not _BEFORE_FIRST.search(text[max(0, hit.start - 20) : hit.start])
    ]
    return resolve(found)


def _is_amount(text: str, hit: Hit) -> bool:
    before = text[max(0, hit.start - 2) : hit.start].rstrip()
    return text[hit.start : hit.end].isdecimal() and (
        before.endswith(("$", "€", "£")) or _AFTER_AMOUNT.match(text, hit.end) is not None
    )
