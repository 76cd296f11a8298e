"""Say what was found in a text, and settle which of several finds stays where they overlap."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

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
# What identifies in the rest of a hit: the words of a name or date, else those with a digit, and
# the letters of a plate.
_WORDS = {"PERSON": re.compile(r"[^\W\d_][\w'’-]+"), "BIRTH_DATE": re.compile(r"\w+")}
_NUMBERED = re.compile(r"[^\s,;()]+")
_CAPITALS = re.compile(r"(?<!\w)[A-Z]{1,4}(?!\w)")
Span = tuple[int, int]


def resolve(text: str, hits: Iterable[Hit]) -> list[Hit]:
    """Return hits without overlaps: the earlier type first, of one type the longer one.

    Of a hit that overlaps surer ones, what identifies outside of them stays a hit.

    Args:
        text: the text that was searched.
        hits: what was found in it.
    """
    chosen: list[Hit] = []
    hits = _joined_people(list(hits))
    in_street = _container([hit for hit in hits if hit.entity == "STREET_ADDRESS"])
    # The parts of an address are no numbers of their own ("Boise, ID 83709").
    hits = [hit for hit in hits if not (_can_be_part(hit) and in_street(hit))]
    in_number = _container([hit for hit in hits if hit.entity in _NUMBERS])
    # Nor are those of a longer number ("313 8620145", asked for in pieces).
    hits = [hit for hit in hits if not (hit.entity in _IN_NUMBERS and in_number(hit))]
    ranked = sorted(hits, key=lambda h: (_RANK.get(h.entity, len(_RANK)), h.start - h.end, h.start))
    for hit in ranked:
        if not _add(chosen, hit):
            for start, end in _identifying(text, hit):
                _add(chosen, Hit(start, end, hit.entity))
    return chosen


def _add(chosen: list[Hit], hit: Hit) -> bool:
    """Put a hit into its place among hits without overlaps; return False if there is none."""
    at = bisect_left(chosen, hit.start, key=lambda other: other.start)
    free = at == 0 or chosen[at - 1].end <= hit.start
    if free and (at == len(chosen) or hit.end <= chosen[at].start):
        chosen.insert(at, hit)
        return True
    return False


def _identifying(text: str, hit: Hit) -> Iterator[Span]:
    """Yield the words of a hit that identify somebody by themselves."""
    if hit.entity in _WORDS:
        yield from (word.span() for word in _WORDS[hit.entity].finditer(text, hit.start, hit.end))
        return
    for word in _NUMBERED.finditer(text, hit.start, hit.end):
        if any(map(str.isdecimal, word[0])):
            yield word.start(), word.start() + len(word[0].rstrip(".:!?"))
        elif hit.entity == "ID_NUMBER":
            yield from (letters.span() for letters in _CAPITALS.finditer(text, *word.span()))


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


def _container(longer: Sequence[Hit]) -> Callable[[Hit], bool]:
    """Return a test whether a hit lies in one of some hits that is longer."""
    ordered = sorted(longer, key=lambda hit: hit.start)
    starts = [hit.start for hit in ordered]
    # The last character of all that begin before a place.
    ends = [0, *accumulate((hit.end for hit in ordered), max)]

    def test(hit: Hit) -> bool:
        before, up_to = bisect_left(starts, hit.start), bisect_right(starts, hit.start)
        return ends[before] >= hit.end or ends[up_to] > hit.end

    return test
