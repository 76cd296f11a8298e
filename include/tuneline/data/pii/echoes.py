"""Find what a conversation says once more of a value that it holds, with a slip or in part.

Whoever corrects a number says it again with another digit; whoever confirms an address says its
street alone. Neither is equal to what was found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from tuneline.data.pii.candidates import candidates_in, key_of
from tuneline.data.pii.hits import Hit
from tuneline.data.pii.naming import BEFORE
from tuneline.data.pii.numbers import is_quantity, is_round
from tuneline.data.pii.stretches import COUNTED
from tuneline.data.pii.words import is_ordinary

_NUMBERS = frozenset("ID_NUMBER PHONE_NUMBER CREDIT_CARD US_SSN IBAN_CODE PASSWORD".split())
_LEAST_DIGITS = 4
# Digits that may differ: of a PIN, and of a longer number.
_SLIPS, _LONG, _LONG_SLIPS = 1, 7, 2
_LEAST_PART = 5
# A number of one digit counts something more often than it is a house.
_HOUSE = re.compile(r"(?<![\w.,:$€£-])(\d{2,5}[a-z]?|\d[a-z])(?![\w%]|[.,:]\d)", re.IGNORECASE)
# A house number alone is one in a turn of so few words.
_FEW_WORDS = 9
_PART = re.compile(r"[^\W\d_]{4,}")


def echoes(
    values: Iterable[tuple[str, str]], is_rare: Callable[[str], bool]
) -> Callable[[str], list[Hit]] | None:
    """Return a finder of what resembles the values of a row, None if nothing can.

    Args:
        values: entity and text of each value.
        is_rare: True for a word that can be looked for on its own, in any case.
    """
    values = list(values)
    numbers: dict[str, str] = {}
    for entity, value in values:
        key = key_of(value)
        coded = entity in _NUMBERS or (entity == "STREET_ADDRESS" and len(key) > _LEAST_DIGITS)
        if coded and key.isdigit() and len(key) >= _LEAST_DIGITS:
            # The first mention decides, as it does for what is said again.
            numbers.setdefault(key, entity)
    streets = [value for entity, value in values if entity == "STREET_ADDRESS"]
    houses = {m[1].casefold() for value in streets for m in _HOUSE.finditer(value)}
    parts = {
        word.casefold()
        for value in streets
        for word in _PART.findall(value)
        # Towns are in the dictionary with a capital; alone they identify nobody.
        if len(word) >= _LEAST_PART and is_rare(word) and not is_ordinary(word.title())
    }
    if not numbers and not streets:
        return None

    def find(text: str) -> list[Hit]:
        hits = []
        for candidate in candidates_in(text) if numbers else ():
            key = key_of(candidate.value)
            before = text[max(0, candidate.start - BEFORE) : candidate.start]
            if is_round(candidate) or is_quantity(before, candidate, adjacent=False):
                continue
            entity = next((e for n, e in numbers.items() if _resembles(key, n)), None)
            if entity is not None:
                hits.append(Hit(candidate.start, candidate.end, entity))
        for match in _PART.finditer(text) if parts else ():
            if match[0].casefold() in parts:
                hits.append(Hit(*match.span(), "STREET_ADDRESS"))
        if houses and len(text.split()) <= _FEW_WORDS:
            hits += [
                Hit(*match.span(1), "STREET_ADDRESS")
                for match in _HOUSE.finditer(text)
                if match[1].casefold() in houses and not COUNTED.match(text, match.end())
            ]
        return hits

    return find


def _resembles(key: str, number: str) -> bool:
    """Return True if a number differs from another in a digit or two at the most."""
    if len(key) != len(number) or not key.isdigit():
        return False
    slips = sum(a != b for a, b in zip(key, number, strict=True))
    return slips <= (_LONG_SLIPS if len(key) >= _LONG else _SLIPS) or sorted(key) == sorted(number)
