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
_NAMES = ("PERSON", "STREET_ADDRESS", "LOCATION")
Find = Callable[[str], Sequence[Hit]]


def residual_hits(messages: Sequence[Message], surrogates: Iterable[str], finder: Find) -> int:
    """Count the hits in a row's turns that are not surrogates."""
    texts = [message["content"] for message in messages]
    values = set(surrogates)
    return sum(len(without_surrogates(text, finder(text), values)) for text in texts)


def without_surrogates(text: str, hits: Sequence[Hit], surrogates: Iterable[str]) -> list[Hit]:
    """Return the hits in a text that share no character with a surrogate."""
    taken = places(text, dict.fromkeys(surrogates, "")) if hits else []
    found: list[Hit] = []
    for hit in hits:
        before = bisect_left(taken, hit.end, key=lambda place: place.start)
        if before == 0 or taken[before - 1].end <= hit.start:
            found.append(hit)
    return found


def places(text: str, values: Mapping[str, str]) -> list[Hit]:
    """Return where values stand in a text: whole words, the longest value first, no overlaps.

    Args:
        text: a text.
        values: entity of each value.
    """
    begun: defaultdict[str, set[int]] = defaultdict(set)
    for value in values:
        if begin := _BEGIN.match(value):
            begun[begin[0]].add(len(value))
    found: list[Hit] = []
    for begin in _BEGIN.finditer(text) if begun else ():
        start = begin.start()
        if found and start < found[-1].end:
            continue
        for length in sorted(begun.get(begin[0], ()), reverse=True):
            value = text[start : start + length]
            if value in values and not _IN_WORD.match(text, start + length):
                found.append(Hit(start, start + length, values[value]))
                break
    return found


def left_values(text: str, replaced: Iterable[tuple[str, str]]) -> list[Hit]:
    """Return what identifies somebody by values that were replaced elsewhere.

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
    lowered = text.lower() if len(text.lower()) == len(text) else text
    found = [hit for hit in places(lowered, anywhere) if not _is_amount(text, hit)]
    found += [hit for hit in places(text, names) if not _begins_sentence(text, hit)]
    return resolve(found)


def _is_amount(text: str, hit: Hit) -> bool:
    """Return True for a plain number that is a price, a share or a part of a longer number."""
    before, after = text[max(0, hit.start - 2) : hit.start].rstrip(), text[hit.end : hit.end + 2]
    return text[hit.start : hit.end].isdecimal() and (
        before[-1:] in ("$", "€", "£") or bool(re.match(r"[.,]\d| ?[%€£$]", after))
    )


def _begins_sentence(text: str, hit: Hit) -> bool:
    before = text[max(0, hit.start - 20) : hit.start].rstrip(" \t\"'“‘(*-")
    return not before or before[-1] in ".!?:\n"
