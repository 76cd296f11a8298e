"""Find dates of birth after a word for birth, in digits or as they are said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tuneline.data.pii.matching import MONTH, Span, any_case, spans
from tuneline.data.pii.safe_harbor import NUMBERED_DATE, SPOKEN_DATE

_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DATE = (
    r"(?:\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}-\d{2}-\d{2}|"
    rf"{_DAY}(?: of)? {MONTH}\.?,? \d{{4}}|{MONTH}\.? {_DAY},? \d{{4}})"
)
_BIRTH = any_case(
    r"\b(?:born(?: on)?|date of birth|birth ?date|birthday|d\.?o\.?b\.?)\b[^\d\n]{0,12}?\b("
    + _DATE
    + r")(?!\d)"
)
# Characters between the word and the end of the date.
_REACH = 40
BIRTH_WORDS = ("born", "birth", "dob", "d.o.b", "bday", "b-day")
_HINTS = (*BIRTH_WORDS, "turn")
_BIRTH_WORD = any_case(
    r"\b(?:born|turn(?:s|ed|ing)? \d{1,2}(?: today)?(?= on\b|,)|"
    r"date of birth|birth ?date|birth ?day|b-?day|d\.?o\.?b\b\.?)"
    r"(?: (?:is|was|on|in|the))*"
)
# The word after the date ("17 october is my birthday").
_SAID_AFTER = any_case(
    r"(?:,| -|:)?(?: (?:that|this|it|which))?(?:'?s| is| was)? ?"
    r"(?:(?:the|my|his|her|their|our|your)(?: [a-z]+['’]?s)? |[a-z]+['’]s )?"
    r"(?:date of birth|birth ?date|birth ?day|b-?day|d\.?o\.?b)\b"
    r"(?! (?:party|present|gift|cake|card|discount|offer|voucher|treat|dinner))"
)
# Later years are rather those of an appointment.
_BORN_YEAR = r"(?:19[2-9]\d|200\d|201[0-5])"
_AFTER_PERSON = any_case(
    rf"[,:]? \(?((?:\d{{1,2}}[./ -]\d{{1,2}}[./ -]{_BORN_YEAR}|{_BORN_YEAR}-\d{{2}}-\d{{2}}|"
    rf"{_DAY}(?: of)? {MONTH}\.?,? {_BORN_YEAR}|{MONTH}\.? {_DAY},? {_BORN_YEAR}))(?![\w/-])"
)
# Where a conversation speaks of births, a whole date is one if somebody can be born then; also with
# day and month the wrong way round ("2006-31-01").
_SHORT_BORN_YEAR = rf"(?:{_BORN_YEAR}|['’]?(?:[3-9]\d|0\d|1[0-5]))"
_WHOLE_DATE = any_case(
    rf"(?<![\w./-])(?:\d{{1,2}} ?([./-]) ?\d{{1,2}} ?\1 ?{_SHORT_BORN_YEAR}|"
    rf"\d{{1,2}} \d{{1,2}} {_BORN_YEAR}|{_BORN_YEAR} ?([./-]) ?\d{{1,2}} ?\2 ?\d{{1,2}}|"
    rf"{_DAY}(?: of)?[ -]{MONTH}\.?,?[ -]{_SHORT_BORN_YEAR}|{MONTH}\.? {_DAY},? {_SHORT_BORN_YEAR})"
    r"(?![\w/-]|[.:]\d)"
)
_SPOKEN_YEAR = any_case(r"\b(?:nineteen|two thousand)\b")
_BORN_IN = re.compile(r"(?<!\d)(?:19|20)\d{2}(?!\d)")
# Words between the birth of one and that of another.
_OTHER = re.compile(
    r"(?:[,;/]? (?:and |& )?|[,;/] ?)(?:(?!on\b)[^\W\d_][\w'’-]{0,14} ){0,3}", re.IGNORECASE
)
_SHORT_DATE = re.compile(
    r"(?<![\w./-])(?:\d{1,2} ?[./ -] ?\d{1,2} ?[./ -] ?(?:\d{4}|\d{2})|"
    r"(?:19|20)\d\d ?[./ -] ?\d{1,2} ?[./ -] ?\d{1,2}|\d{8}|\d{6})(?![\w/-]|\.\d)"
)

_ANY_DATE = (NUMBERED_DATE, SPOKEN_DATE, _SHORT_DATE)


def birth_dates(text: str, lowered: str) -> Iterator[Span]:
    """Yield the dates beside a word for birth: characters start to end.

    Args:
        text: any text.
        lowered: the text in lower case.
    """
    if any(hint in lowered for hint in _HINTS):
        yield from _beside_cue(text)


def births_after(text: str, ends: Iterable[int]) -> Iterator[Span]:
    """Yield the dates right after a person, if somebody can be born then ("amara, 12 june 1988").

    Args:
        text: any text.
        ends: where the people's names end.
    """
    for end in ends:
        match = _AFTER_PERSON.match(text, end)
        if match is not None:
            yield match.span(1)


def lone_date(text: str) -> Iterator[Span]:
    """Yield the date that is all of a text, if somebody can be born then: an answer.

    Args:
        text: any text.
    """
    match = _WHOLE_DATE.fullmatch(text.strip().rstrip(".,!"))
    if match is not None:
        start = len(text) - len(text.lstrip())
        yield start, start + match.end()


def whole_dates(text: str) -> Iterator[Span]:
    """Yield the whole dates on which somebody can be born, of a conversation that speaks of births.

    Args:
        text: any text.
    """
    for match in _WHOLE_DATE.finditer(text):
        yield match.span()
    for match in SPOKEN_DATE.finditer(text):
        if _SPOKEN_YEAR.search(match[0]):
            yield match.span()


def _beside_cue(text: str) -> Iterator[Span]:
    yield from spans(text, _BIRTH)
    for cue in _BIRTH_WORD.finditer(text):
        for pattern in _ANY_DATE:
            match = pattern.search(text, cue.end(), cue.end() + _REACH)
            if match and "?" not in text[cue.end() : match.start()]:
                yield match.span()
                year = _BORN_IN.search(text, cue.end(), match.start())
                if year:
                    yield year.span()
                yield from _next_born(text, match.end())
                break
        start = max(0, cue.start() - _REACH)
        for pattern in _ANY_DATE:
            for match in pattern.finditer(text, start, cue.start()):
                if _SAID_AFTER.match(text, match.end()):
                    yield match.span()


def _next_born(text: str, end: int) -> Iterator[Span]:
    """Yield the dates of birth of others in the same sentence ("and dad 12th may 38")."""
    while (link := _OTHER.match(text, end)) is not None:
        match = next((m for p in _ANY_DATE if (m := p.match(text, link.end()))), None)
        if match is None:
            return
        yield match.span()
        end = match.end()
