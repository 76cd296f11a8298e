"""Say what was found in a text, and settle which of several finds stays where they overlap."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tuneline.machine.secret_shapes import SECRETS


@dataclass(frozen=True, slots=True)
class Hit:
    """A span of a text, characters start to end, of an entity type."""

    start: int
    end: int
    entity: str


# If two hits overlap, the one whose type is earlier in this list stays.
PATTERN_ENTITIES = (
    *SECRETS,
    "EMAIL_ADDRESS",
    "IBAN_CODE",
    "CREDIT_CARD",
    "US_SSN",
    "IP_ADDRESS",
    "MAC_ADDRESS",
    "ID_NUMBER",
    "BIRTH_DATE",
    "PHONE_NUMBER",
    "STREET_ADDRESS",
)
# An address or number inside a URL is part of it; other types come last.
_RANK = {
    entity: rank
    for rank, entity in enumerate((*SECRETS, "URL", *PATTERN_ENTITIES[len(SECRETS) :], "DATE"))
}

# Types that a part of a street address can be taken for, and others whose few digits can be one.
_PARTS = frozenset({"ID_NUMBER", "PHONE_NUMBER"})
_FEW_DIGITS_PARTS = frozenset({"CREDIT_CARD", "US_SSN", "BIRTH_DATE"})
_MOST_DIGITS_OF_PART = 6
_NUMBERS = frozenset({"ID_NUMBER", "PHONE_NUMBER", "CREDIT_CARD", "US_SSN"})
_IN_NUMBERS = _NUMBERS | {"EMAIL_ADDRESS"}
_NUMBERED_WORD = re.compile(r"[^\s,;()]*\d[^\s,;()]*(?<![.:!?])")
# What identifies in the rest of a hit: the words of a name or date, the letters of a plate.
_LEFT_OF = {
    "PERSON": re.compile(r"[^\W\d_][\w'’-]+"),
    "BIRTH_DATE": re.compile(r"\w+"),
    "ID_NUMBER": re.compile(r"[^\s,;()]*\d[^\s,;()]*(?<![.:!?])|(?<!\w)[A-Z]{1,4}(?!\w)"),
}


def resolve(text: str, hits: Iterable[Hit]) -> list[Hit]:
    """Return hits without overlaps: the earlier type first, of one type the longer one.

    Of a hit that overlaps surer ones, what identifies outside of them stays a hit.

    Args:
        text: the text that was searched.
        hits: what was found in it.
    """
    chosen: list[Hit] = []
    hits = _joined_people(list(hits))
    streets = [hit for hit in hits if hit.entity == "STREET_ADDRESS"]
    if streets:
        # The parts of an address are no numbers of their own ("Boise, ID 83709").
        hits = [hit for hit in hits if not (_can_be_part(hit) and _within(hit, streets))]
    numbers = [hit for hit in hits if hit.entity in _NUMBERS]
    if len(numbers) > 1:
        # Nor are those of a longer number ("313 8620145", asked for in pieces).
        hits = [hit for hit in hits if not (hit.entity in _IN_NUMBERS and _within(hit, numbers))]
    ranked = sorted(hits, key=lambda h: (_RANK.get(h.entity, len(_RANK)), h.start - h.end, h.start))
    for hit in ranked:
        # Chosen hits do not overlap each other.
        at = bisect_left(chosen, hit.start, key=lambda other: other.start)
        free_before = at == 0 or chosen[at - 1].end <= hit.start
        if free_before and (at == len(chosen) or hit.end <= chosen[at].start):
            chosen.insert(at, hit)
        else:
            chosen = sorted([*chosen, *_left_of(text, hit, chosen)], key=lambda other: other.start)
    return chosen


def _left_of(text: str, hit: Hit, chosen: Sequence[Hit]) -> Iterator[Hit]:
    """Yield the words of a hit outside of the chosen ones, as far as they identify somebody."""
    words = _LEFT_OF.get(hit.entity, _NUMBERED_WORD)
    for word in words.finditer(text, hit.start, hit.end):
        if not any(other.start < word.end() and word.start() < other.end for other in chosen):
            yield Hit(word.start(), word.end(), hit.entity)


def _joined_people(hits: Sequence[Hit]) -> list[Hit]:
    """Return the hits with one for all names that overlap ("maria del carmen", "carmen quispe")."""
    people = sorted((hit for hit in hits if hit.entity == "PERSON"), key=lambda hit: hit.start)
    if len(people) < 2:
        return list(hits)
    joined = people[:1]
    for hit in people[1:]:
        last = joined[-1]
        if hit.start < last.end:
            joined[-1] = Hit(last.start, max(last.end, hit.end), last.entity)
        else:
            joined.append(hit)
    return [*(hit for hit in hits if hit.entity != "PERSON"), *joined]


def _can_be_part(hit: Hit) -> bool:
    """Return True if a hit can be the house number, unit or postal code of an address."""
    short = hit.end - hit.start <= _MOST_DIGITS_OF_PART
    return hit.entity in _PARTS or (hit.entity in _FEW_DIGITS_PARTS and short)


def _within(hit: Hit, longer: Sequence[Hit]) -> bool:
    size = hit.end - hit.start
    return any(
        other.start <= hit.start and hit.end <= other.end and size < other.end - other.start
        for other in longer
    )
