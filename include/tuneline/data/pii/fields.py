"""Read the fields of forms ("postcode: SA1 3XL; NI - JG 44 19 02 B") as questions and answers.

A label asks for a value as a turn of the assistant does, so the same rules find what stands after
it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuneline.data.pii.answers import answers
from tuneline.data.pii.caseless import Caseless
from tuneline.data.pii.hits import Hit
from tuneline.data.pii.matching import MONTH
from tuneline.data.pii.name_words import NameWords
from tuneline.data.pii.stretches import asked_numbers
from tuneline.data.pii.topics import topics

_LINK = re.compile(
    r"(?: (?:no|number|nr|id|code|in full|as on [a-z ]{1,20}))?\.? ?(?:[:=]|-{1,2}>?(?= )| – ) ?",
    re.IGNORECASE,
)
# In a text without any of these no label stands before a value.
_LINK_SIGNS = (":", "=", "- ", "-> ", " – ")
_END = re.compile(r"[;|\n]| / | - |\. (?=[A-Z][\w /'-]{0,24}:)|, ?(?=[^\W\d_][\w .'-]{0,24}[:=])")
# What a text is to be about.
_KEYWORDS = re.compile(r"key ?words?", re.IGNORECASE)
_MOST = 80
_TOPICS = frozenset("name address birth email secret ssn phone card account".split())


def fields(text: str, words: NameWords) -> Iterator[Hit]:
    """Yield the values of the fields of a form.

    Args:
        text: any text of a conversation.
        words: names and ordinary words.
    """
    if not any(sign in text for sign in _LINK_SIGNS):
        return
    for topic in topics(text):
        link = _LINK.match(text, topic.end) if topic.name in _TOPICS else None
        if link is None or _KEYWORDS.fullmatch(text, topic.start, topic.end):
            continue
        stop = _END.search(text, link.end())
        end = min(stop.start() if stop else len(text), link.end() + _MOST)
        value = text[link.end() : end]
        wanted = frozenset({topic.name})
        found = [(h.start, h.end, h.entity) for h in answers(value, wanted, words, user=True)]
        for start, until, entity in (*found, *asked_numbers(value, wanted)):
            yield Hit(link.end() + start, link.end() + until, entity)


# Words after which somebody names a place, and what shows that it is the number of a house.
_PLACE_FRAME = Caseless(
    r"\b(?:deliver(?:ed|y)?(?: it)? to|pick (?:me|us|him|her|it) up(?: (?:at|from))?|"
    r"drop (?:it|me|us|them)(?: off)?(?: at)?|send (?:it |them |someone )?(?:to|round to)|"
    r"i(?:'m| am) at|come to|(?:live|lives|living|staying|moved) (?:at|to|in)|address is) "
    r"(?=(?:[a-z'’]+,? ){0,3}?(?:(?:flat|unit|tower|house|plot|block|door|apt|no) ?\d|"
    r"corner of|\d{1,5}[a-z]?,? [a-z]|\d{1,3}(?:st|nd|rd|th) ))"
)
NO_PLACE = re.compile(
    r"(?:[a-z'’]+,? ){0,3}?(?:\d{1,2}:\d\d|\d{1,2}(?:st|nd|rd|th)(?=\W|$)(?! [a-z]+ (?:street|st|"
    rf"ave|avenue|road|rd)\b| (?:street|st|ave|avenue|floor)\b)|{MONTH}\.?,? \d|\d+ ?(?:%|percent|"
    r"people|persons?|[ap]\.?m|o'?clock|days?|hours?|min\w*|months?|years?|km|miles?|gb|mb|times|"
    r"items?|pieces?|different|more|other|of|or|and|to|in the|at|on|until|till|sharp|kids|friends)"
    r"(?!\w))",
    re.IGNORECASE,
)


def named_places(text: str, words: NameWords) -> Iterator[Hit]:
    """Yield the addresses that somebody asks to come to or says to live at.

    Args:
        text: a turn of the user, with a digit or a corner in it.
        words: names and ordinary words.
    """
    for frame in _PLACE_FRAME.finditer(text):
        if not NO_PLACE.match(text, frame.end()):
            value = text[frame.end() : frame.end() + _MOST]
            for hit in answers(value, frozenset({"address"}), words, user=True):
                yield Hit(hit.start + frame.end(), hit.end + frame.end(), hit.entity)
