"""Find the types that only the safe-harbor method counts: dates, postal codes, URLs, high ages.

45 CFR 164.514(b)(2)(i) removes all elements of dates but the year, geographic units smaller than a
state, web addresses, and ages over 89. Elsewhere these are ordinary content, so they are looked for
only if the profile demands them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

DEMANDED_ONLY = ("URL", "DATE", "POSTAL_CODE", "AGE_OVER_89")

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|"
    r"sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_YEAR = r"(?:19|20)\d{2}"
_DATE = (
    rf"{_YEAR} ?[-/.] ?\d{{1,2}} ?[-/.] ?\d{{1,2}}"
    rf"|\d{{1,2}} ?[-/.] ?\d{{1,2}} ?[-/.] ?(?:{_YEAR}|\d{{2}})"
    rf"|(?:the )?{_DAY}(?: of)? {_MONTH}(?:,? {_YEAR})?"
    rf"|{_MONTH} {_DAY}(?:,? {_YEAR})?"
    rf"|{_MONTH},? {_YEAR}"
)


class _Shape(NamedTuple):
    entity: str
    pattern: re.Pattern[str]


_ORDINAL = (
    r"(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|"
    r"thirteenth|fourteenth|fifteenth|sixteenth|seventeenth|eighteenth|nineteenth|twentieth|"
    r"twenty[ -](?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth)|thirtieth|"
    r"thirty[ -]first)"
)
_TENS = r"(?:twenty|thirty|fou?rty|fifty|sixty|seventy|eighty|ninety)"
_ONES = r"(?:one|two|three|four|five|six|seven|eight|nine)"
_YEAR_WORDS = (
    rf"(?:(?:nineteen|twenty|eighteen)[ -](?:hundred|oh {_ONES}|{_TENS}(?:[ -]{_ONES})?|"
    r"(?:ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen))|"
    rf"two thousand(?:[ -](?:and )?(?:{_ONES}|\w+teen|ten|eleven|twelve|{_TENS}(?:[ -]{_ONES})?))?)"
)
# Two-digit years as they are said: "eighty four", "'17".
_SHORT_YEAR = rf"(?:{_TENS}[ -]{_ONES}\b|['’]\d{{2}}(?!\w)|\d{{2}}(?![\w:]))"
_WHEN = rf"(?:,? (?:(?:in )?{_YEAR}|{_YEAR_WORDS}|{_SHORT_YEAR}))?"
# A date in words, digits or both.
SPOKEN_DATE = re.compile(
    rf"(?<![\w./-])(?:(?:the )?(?:{_ORDINAL}|{_DAY})(?: of)? {_MONTH}{_WHEN}|"
    rf"{_MONTH} (?:the )?(?:{_ORDINAL}|{_DAY}(?!\d)){_WHEN}|{_MONTH},? {_YEAR})(?![\w/-]|\.\d)",
    re.IGNORECASE,
)
# A month as a number, said with an article: "the 9th of the 9th 1949".
NUMBERED_DATE = re.compile(
    rf"(?<![\w./-])(?:the )?(?:{_ORDINAL}|{_DAY}) of (?:the )?(?:{_ORDINAL}|{_DAY}){_WHEN}"
    r"(?![\w/-]|\.\d)",
    re.IGNORECASE,
)
# Day and month alone look like fractions, unless a word before them says when.
_DAY_MONTH = (
    r"\b(?:on|from|since|by|dated?|until|till|to|last|before|after|for|of|due|and|starting|ending)"
    r" ((?:0?[1-9]|1[0-2])/(?:0?[1-9]|[12]\d|3[01])|(?:1[3-9]|2\d|3[01])/(?:0?[1-9]|1[0-2]))"
    r"(?![\w/-]|\.\d)"
)
# The month and year until which a card is valid.
_EXPIRY = (
    r"\b(?:exp|expir(?:es|y|ing|ation)|valid (?:until|thru|through|to))\.?(?: date)?"
    r"(?: (?:is|was|on|of|in))?\W{0,3}((?:0?[1-9]|1[0-2]) ?[/-] ?(?:20)?\d{2})(?![\w/-]|\.\d)"
)

# The first group is the hit.
_SHAPES = tuple(
    _Shape(entity, re.compile(text, re.IGNORECASE))
    for entity, text in (
        (
            "URL",
            r"(?<![\w@.])((?:https?|ftp)(?:://| : // ?)[^\s<>\"']{3,2000}?|"
            r"www ?\. ?[\w-]{1,63} ?\. ?[a-z]{2,10}(?:/[^\s<>\"']{0,2000}?)?)"
            r"(?=[.,;:!?)\]]*(?:[\s<>\"']|$))",
        ),
        ("DATE", rf"(?<![\w./-])({_DATE})(?![\w/-]|\.\d)"),
        ("DATE", rf"({SPOKEN_DATE.pattern})"),
        ("DATE", _DAY_MONTH),
        ("DATE", _EXPIRY),
        (
            "POSTAL_CODE",
            r"\b(?:zip|zip ?code|postal ?code|post ?code)\b(?: (?:is|was))?\W{0,3}"
            r"(\d(?: ?\d){4}(?: ?- ?\d{4})?|[a-z]{1,2}\d[a-z\d]? ?\d[a-z]{2})(?!\w)",
        ),
        (
            "AGE_OVER_89",
            r"\b(?:aged?|age is|age of)[ :]{1,3}(9\d|1[0-2]\d)(?![\w%]|[.,]\d| ?(?:days|months)\b)"
            r"|(?<![\w.,$€£-])(9\d|1[0-2]\d)(?= ?-? ?(?:years?|yrs?|y) ?-? ?(?:old|of age)\b)",
        ),
    )
)


def find_demanded(text: str, entities: Collection[str]) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and entity of each hit.

    Args:
        text: any text.
        entities: the types of `DEMANDED_ONLY` to look for.
    """
    for entity, pattern in _SHAPES:
        if entity not in entities:
            continue
        for match in pattern.finditer(text):
            group = match.lastindex or 0
            yield match.start(group), match.end(group), entity
