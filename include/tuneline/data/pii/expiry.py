"""Find the month until which a card is valid, where a conversation is about a card.

PCI DSS (4.0, table 3) counts it as cardholder data, to be protected beside the number of the card.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuneline.data.pii.matching import MONTH, ONES, Span, any_case, spans

CARD_WORDS = ("card", "visa", "amex", "debit", "cvv", "cvc")
_SPOKEN_YEAR = rf"(?:twenty|thirty)(?:[ -](?:{ONES}))?"
_MONTH_OF_YEAR = (
    rf"(?:{MONTH} (?:of )?{_SPOKEN_YEAR}|"
    rf"(?:(?:oh |zero )?(?:{ONES})|ten|eleven|twelve)[ /,]{{1,2}}{_SPOKEN_YEAR}|"
    rf"(?:0?[1-9]|1[0-2]) ?[/.-] ?(?:20)?[2-4]\d|{MONTH}\.?,? ?(?:of )?(?:20)?[2-4]\d|"
    r"(?:0[1-9]|1[0-2]) ?(?:20)?[2-4]\d)(?![\w/-]|[.:]\d)"
)
_VALUE = any_case(rf"(?<![\w./:$€£-])({_MONTH_OF_YEAR})")
_NAMED = any_case(
    r"\b(?:exp(?:iry|ires?|iration|ired|iring|d)?|valid(?: (?:thru|through|until|till|to))?|"
    r"good (?:thru|through))\b\.?"
    rf"(?: date)?(?: (?:is|was|on|in|of|since))*\W{{0,3}}({_MONTH_OF_YEAR}|[1-9] [2-4]\d(?![\w/-]))"
)
# The code of the card, right after.
_CODE_AFTER = any_case(
    r"[ ,/;]{1,3}(?:(?:\d{3,4}|(?:(?:and|the|back|behind|sec\w*|cvv2?|cvc|code|pin)\W{1,2}){1,3}"
    r"\d(?: ?\d){1,3}))(?![\w/:-]|[.,]\d)"
)
_DIGITS = re.compile(r"\d[\d ]*")
_ASKED = any_case(r"\bexp(?:iry|ires?|iration)?\b|\bvalid (?:thru|through|until|till)\b")
# A longer answer tells about something else.
_MOST_WORDS = 8


def asks_for_expiry(text: str) -> bool:
    """Return True if a turn asks until when something is valid."""
    return _ASKED.search(text) is not None


def expiries(text: str, *, asked: bool) -> Iterator[Span]:
    """Yield the months until which a card is valid, and the codes after them, as spans.

    Args:
        text: a turn of a conversation about a card.
        asked: True if the turn before asked for it.
    """
    for pattern in (_NAMED, _VALUE) if asked and len(text.split()) <= _MOST_WORDS else (_NAMED,):
        for start, end in spans(text, pattern):
            yield start, end
            code = _CODE_AFTER.match(text, end)
            digits = code and _DIGITS.search(text, code.start(), code.end())
            if digits:
                yield digits.span()
