"""Find numbers that are written as words, digit by digit ("double four seven one")."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from tuneline.data.pii.caseless import Caseless

_DIGIT_WORDS = "zero|nought|naught|oh|o|one|two|three|four|five|six|seven|eight|nine"
_LARGE = (
    "ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|"
    "forty|fourty|fifty|sixty|seventy|eighty|ninety|hundred|thousand"
)
_TIMES = {"double": 2, "triple": 3, "treble": 3}
_UNIT = rf"(?:(?:double|triple|treble) (?:{_DIGIT_WORDS}|\d)|{_DIGIT_WORDS}|{_LARGE}|\d{{1,4}})"
_GAP = r"(?: ?(?:\.{2,4}|[-,./]) ?| (?:dash|hyphen|space|um|uh|then|and) | )"
# "Plus" begins the code of a country.
_PLUS = r"(?:plus ?|\+ ?)"
_RUN = Caseless(rf"(?<![\w$£€])(?P<plus>{_PLUS})?{_UNIT}(?:{_GAP}{_UNIT}){{1,30}}(?![\w%])")
_WORD = re.compile(r"[a-z]+|\d+", re.IGNORECASE)
_DIGITS = re.compile(r"\d")
# What follows an amount.
_COUNTED = re.compile(
    r"\W{0,2}(?:thousand|million|%|percent|dollars|bucks|euros|pounds|point)\b", re.I
)
_SINGLE = frozenset(_DIGIT_WORDS.split("|"))
_TENS = frozenset(_LARGE.split("|"))
# Parts of an amount, unless so many digits are said one by one that it is none ("eight hundred five
# five five oh one nine nine").
_AMOUNTS = frozenset({"hundred", "thousand"})
_READ_OUT = 6
# "Oh" begins a sentence as well as a number.
_OH = frozenset({"oh", "o"})
_OH_DIGITS = 4
_COUNTRY_DIGITS = 8
_SAID = _SINGLE | _TENS | _TIMES.keys()


class Spoken(NamedTuple):
    """A number in words: characters start to end of a text.

    Attributes:
        digits: number of digits that it stands for, at least.
        plain: True if it is spoken digit by digit, as no quantity is.
    """

    start: int
    end: int
    digits: int
    plain: bool


def has_digit_words(lowered: str) -> bool:
    """Return True if a lower-case text holds two words for digits, as most texts do not."""
    # Comparing words is faster than a pattern.
    words = lowered.replace(",", " ").replace("-", " ").split()
    said = _SAID.intersection(words)
    return len(said) > 1 or any(words.count(word) > 1 for word in said)


def says_number(lowered: str) -> bool:
    """Return True if a lower-case text holds a word for a number."""
    return not _SAID.isdisjoint(lowered.replace(",", " ").split())


def spoken_numbers(text: str) -> Iterator[Spoken]:
    """Yield the numbers of a text that hold at least two words for digits."""
    if not has_digit_words(text.lower()) and not _DIGITS.search(text):
        return
    for match in _RUN.finditer(text):
        lead = match["plus"] or ""
        words = [word.lower() for word in _WORD.findall(match[0][len(lead) :])]
        singles = sum(word in _SINGLE for word in words)
        tens = sum(word in _TENS for word in words)
        one_by_one = _count([word for word in words if word not in _TENS])
        amount = not _AMOUNTS.isdisjoint(words) and one_by_one < _READ_OUT
        repeated = not _TIMES.keys().isdisjoint(words)
        if (singles + tens < 2 and not repeated) or amount or _COUNTED.match(text, match.end()):
            continue
        digits = _count(words)
        alone = len(match[0]) == len(text.strip())
        if words[0] in _OH and digits < _OH_DIGITS and not (alone and tens == 0):
            continue
        start = match.start() + (len(lead) if digits < _COUNTRY_DIGITS else 0)
        yield Spoken(start, match.end(), digits, tens == 0 and (singles >= 3 or repeated))


def _count(words: list[str]) -> int:
    """Return the number of digits that words stand for, at least."""
    digits, times = 0, 1
    for word in words:
        if word in _TIMES:
            times = _TIMES[word]
            continue
        digits += times * (len(word) if word.isdigit() else 1 + (word in _TENS))
        times = 1
    return digits
