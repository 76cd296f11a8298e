"""Read an answer for the number or date that was asked for, however it is broken up.

People give a number in groups of any size, with pauses and signs between them, some of it in words
("9214 uh 8...92-27", "the fourteenth of june ninety one"). After a question, all groups that follow
each other are one value if they have as many digits as such a value has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from tuneline.data.pii.caseless import Caseless
from tuneline.data.pii.matching import MONTH, Span
from tuneline.data.pii.topics import ENTITY_OF

# Longer answers hold more than a value.
_LONGEST = 160
_ONES = "zero|nought|oh|o|one|two|three|four|five|six|seven|eight|nine"
_TENS = (
    "ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|"
    "forty|fourty|fifty|sixty|seventy|eighty|ninety"
)
_TIMES = {"double": 2, "triple": 3, "treble": 3}
_LARGE = "hundred|thousand"
_UNIT = rf"(?:\d++|(?:double|triple|treble) (?:\d|{_ONES})\b|(?:{_ONES}|{_TENS}|{_LARGE})\b)"
# Somebody who corrects himself goes on with the same number.
_PAUSE = (
    r"(?: ?(?:\.{1,4}|[-,/()_*]|(?:then|and|uh|uhm|um|er|erm|hm+|dash|slash|stroke|space|"
    r"next|hyphen|wait|sorry|no|i mean|actually)\b) ?| {1,3}){1,3}+"
)
_STRETCH = Caseless(
    rf"(?<![\w$£€:@#])(?<!\d[.,]){_UNIT}(?:{_PAUSE}{_UNIT}){{0,24}}(?![\w%:@]|[.,]\d)"
)
_WORD = re.compile(r"\d+|[a-z]+", re.IGNORECASE)
_DIGIT_WORD = re.compile(rf"\b(?:{_ONES}|{_TENS})\b", re.IGNORECASE)
_LEAD = re.compile(
    rf"(?P<word>{_ONES})\b\W{{1,3}}(?P<pause>(?:(?:wait|sorry|no|i mean|actually)\b\W{{1,3}})*)"
    r"(?=\d{3}|\d\d[ .-]\d\d)",
    re.IGNORECASE,
)
# "… 0362, oh it ends there".
_TAIL = re.compile(rf"(?<=\d{{3}})\W{{1,3}}(?:{_ONES})$", re.IGNORECASE)
# Fewest digits of an answer.
_LEAST_ASKED = 3
_BETWEEN = frozenset(
    "then and uh uhm um er erm hm hmm dash slash stroke space next hyphen wait sorry no i mean "
    "actually".split()
)
_LARGE_DIGITS = {"hundred": 2, "thousand": 3}
_TEN_WORDS = frozenset(_TENS.split("|"))
_ONE_WORDS = frozenset(_ONES.split("|"))
# Digits of a whole value, and of the part that is asked for, by topic.
_LENGTHS: dict[str, frozenset[int]] = {
    "ssn": frozenset({4, 5, 9}),
    "card": frozenset({4, 8, *range(12, 20)}),
    "phone": frozenset({4, *range(7, 16)}),
    "account": frozenset(range(4, 23)),
    "secret": frozenset(range(3, 9)),
    "code": frozenset(range(3, 9)),
}
_MOST_SPECIFIC = ("ssn", "card", "phone", "secret", "code", "account")
_LETTERED = frozenset({"ID_NUMBER", "US_SSN"})
# "a", "i" and "u" are words, and so is most of what has two letters in lower case.
_CODE = r"(?:[b-hj-tv-zB-HJ-Z]|[A-Z]{2,5}|[A-Z]{0,4}\d[A-Z\d]{0,8})"
_LETTERS_BEFORE = re.compile(
    rf"(?<![\w'’])({_CODE}|(?<=[\w,:] )A|[A-Za-z] as in [a-z]+)[ /.-]{{1,2}}$"
)
_LETTERS_AFTER = re.compile(rf"[ /.-]{{1,2}}({_CODE})(?![\w'’])")
# Single letters and codes on each side of a number.
_MOST_LETTERS = 12
# What is counted is no identifier.
COUNTED = re.compile(
    r" ?(?:%|percent|dollars?|bucks?|euros?|pounds?|cents?|days?|weeks?|months?|years?|hours?|"
    r"minutes?|mins?|times|people|am|pm|gb|mb|kg|km|miles)\b",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"\d{1,4}\.\d{1,2}")
_ORDINALS = (
    "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|thirteenth|"
    "fourteenth|fifteenth|sixteenth|seventeenth|eighteenth|nineteenth|twentieth|thirtieth"
)
_SEASONS = "spring|summer|autumn|fall|winter"
_DATE_UNIT = (
    rf"(?:\d{{1,8}}(?:st|nd|rd|th)?|{MONTH}|(?:{_TENS}|twenty|thirty)[ -](?:{_ORDINALS})|"
    rf"{_ORDINALS}|{_TENS}|{_ONES}|{_LARGE}|{_SEASONS}|(?:same|last|that) year)(?!\w)"
)
_DATE_PAUSE = r"(?:[ .,/'’-]|\b(?:of|the|in|and|day)\b){1,6}"
_DATE = re.compile(rf"(?<![\w$£€:]){_DATE_UNIT}(?:{_DATE_PAUSE}{_DATE_UNIT}){{1,7}}", re.IGNORECASE)


def asked_numbers(text: str, wanted: frozenset[str]) -> Iterator[tuple[int, int, str]]:
    """Yield the numbers of an answer that have the length of what was asked for.

    Args:
        text: a turn.
        wanted: topics that the turn before asked for.

    Yields:
        Start, end and entity.
    """
    asked = [topic for topic in _MOST_SPECIFIC if topic in wanted]
    if not asked or len(text) > _LONGEST:
        return
    for stretch in stretches(text):
        if stretch.groups < 2 or stretch.digits < _LEAST_ASKED:
            # One group is a candidate like any other.
            continue
        if _AMOUNT.fullmatch(text, stretch.start, stretch.end):
            continue
        start, end = stretch.start, stretch.end
        # A digit too many or too few is as personal.
        topic = next((t for t in asked if stretch.digits in _LENGTHS[t]), asked[0])
        if ENTITY_OF[topic] in _LETTERED:
            start, end = with_letters(text, start, end)
        yield start, end, ENTITY_OF[topic]


class Stretch(NamedTuple):
    """Groups of digits that follow each other: characters start to end of a text.

    Attributes:
        groups: number of groups, and of words for digits.
        digits: number of digits that they stand for.
    """

    start: int
    end: int
    groups: int
    digits: int


@lru_cache(maxsize=10_000)
def stretches(text: str) -> Sequence[Stretch]:
    """Return the numbers of a text that may be broken up, but for what is counted ("5 days")."""
    found = []
    for match in _STRETCH.finditer(text):
        if not COUNTED.match(text, match.end()):
            start = match.start() + _before_number(match[0])
            end = match.end()
            tail = _TAIL.search(text, start, end)
            if tail and not _DIGIT_WORD.search(text, start, tail.start()):
                end = tail.start()
            words = _WORD.findall(text[start:end].casefold())
            said = [word for word in words if word not in _BETWEEN]
            found.append(Stretch(start, end, len(said), _count(said)))
    return found


def _before_number(said: str) -> int:
    """Return the number of characters before the first digit of a number.

    "oh wait 8830" begins with a sigh, and "this one 5203 8814" or "last four 8853" with a word for
    what follows in figures.
    """
    lead = _LEAD.match(said)
    if lead is None:
        return 0
    sigh = lead["pause"] and lead["word"].casefold() in ("oh", "o")
    return lead.end() if sigh or not _DIGIT_WORD.search(said, lead.end()) else 0


def with_letters(text: str, start: int, end: int) -> Span:
    """Return a number with the single letters and codes beside it ("z 3 3 1", "T99 QX")."""
    for _ in range(_MOST_LETTERS):
        lead = _LETTERS_BEFORE.search(text, max(0, start - 64), start)
        tail = _LETTERS_AFTER.match(text, end)
        start = lead.start(1) if lead else start
        end = tail.end(1) if tail else end
    return start, end


def asked_dates(text: str) -> Iterator[Span]:
    """Yield the dates of an answer to a question for one, in digits or words."""
    if len(text) <= _LONGEST:
        for match in _DATE.finditer(text):
            if len(_WORD.findall(match[0])) > 1:
                yield match.span()


def _count(words: list[str]) -> int:
    """Return the number of digits that the words of a stretch stand for."""
    digits, times, after_ten = 0, 1, False
    for word in words:
        if word in _TIMES:
            times = _TIMES[word]
        elif word.isdigit():
            digits += times * len(word)
            times, after_ten = 1, False
        elif word in _ONE_WORDS:
            # "forty two" are two digits.
            digits += 0 if after_ten and word not in ("zero", "oh", "o") else times
            times, after_ten = 1, False
        elif word in _LARGE_DIGITS:
            digits += _LARGE_DIGITS[word]
            after_ten = False
        elif word in _TEN_WORDS:
            digits += 2
            after_ten = word.endswith("ty")
    return digits
