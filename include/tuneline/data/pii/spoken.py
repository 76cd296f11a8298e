"""Find numbers that are written as words, digit by digit ("double four seven one")."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from tuneline.data.pii.caseless import Caseless

_DIGIT_WORDS = "zero|nought|oh|o|one|two|three|four|five|six|seven|eight|nine"
_LARGE = (
    "ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|"
    "forty|fourty|fifty|sixty|seventy|eighty|ninety|hundred"
)
_TIMES = {"double": 2, "triple": 3}
_UNIT = rf"(?:(?:double|triple) (?:{_DIGIT_WORDS}|\d)|{_DIGIT_WORDS}|{_LARGE}|\d{{1,4}})"
_GAP = r"(?: ?[-,.] ?| (?:dash|hyphen|um|uh|then|and) | )"
_RUN = Caseless(rf"(?<![\w$£€]){_UNIT}(?:{_GAP}{_UNIT}){{1,30}}(?![\w%])")
_WORD = re.compile(r"[a-z]+|\d+", re.IGNORECASE)
_DIGITS = re.compile(r"\d")
# What follows an amount.
_COUNTED = re.compile(
    r"\W{0,2}(?:thousand|million|%|percent|dollars|bucks|euros|pounds|point)\b", re.I
)
_SINGLE = frozenset(_DIGIT_WORDS.split("|"))
_TENS = frozenset(_LARGE.split("|"))
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


def spoken_numbers(text: str) -> Iterator[Spoken]:
    """Yield the numbers of a text that hold at least two words for digits."""
    if not has_digit_words(text.lower()) and not _DIGITS.search(text):
        return
    for match in _RUN.finditer(text):
        words = [word.lower() for word in _WORD.findall(match[0])]
        singles = sum(word in _SINGLE for word in words)
        tens = sum(word in _TENS for word in words)
        counted = "hundred" in words or _COUNTED.match(text, match.end())
        if singles + tens < 2 or counted or (words[0] in ("oh", "o") and len(words) < 5):
            continue
        digits, times = 0, 1
        for word in words:
            if word in _TIMES:
                times = _TIMES[word]
                continue
            digits += times * (len(word) if word.isdigit() else 1 + (word in _TENS))
            times = 1
        yield Spoken(match.start(), match.end(), digits, tens == 0 and singles >= 3)
