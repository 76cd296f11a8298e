"""Find the addresses of a conversation that is about one, where nothing else shows them.

Whoever confirms an address says it without a word for it ("still Hartsease Lodge, Presteigne?"),
and whoever is asked for it adds the number of a flat, or the postal code, later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuneline.data.pii.answer_words import FILLER
from tuneline.data.pii.caseless import Caseless
from tuneline.data.pii.cases import lacks_case
from tuneline.data.pii.fields import NO_PLACE
from tuneline.data.pii.matching import MONTH, Span
from tuneline.data.pii.name_words import NameWords
from tuneline.data.pii.words import is_ordinary

# Before the number of a house and a word that is not counted.
_HOUSE = Caseless(
    r"\b(?:to|at|from|on|is|was|be|for|still|house|home) "
    r"(?=\d{1,5}[a-z]?,? (?:(?:n|s|e|w|ne|nw|se|sw|north|south|east|west) )?[a-z]{4,}(?![\w@%]))"
)
_STREET = re.compile(
    r"\d{1,5}[a-z]?,? (?:(?:n|s|e|w|ne|nw|se|sw|north|south|east|west) )?(?P<name>[^\W\d_]{4,})"
    r"(?: (?:st|street|ave|avenue|rd|road|ln|lane|dr|drive|ct|court|way|run|ridge|hill|close|"
    r"pl|place|blvd|pkwy|cir|ter|trl|loop|path|sq|[nsew]|[ns][ew])(?![\w@]))*",
    re.IGNORECASE,
)
_MONTH_WORD = re.compile(MONTH, re.IGNORECASE)
# The part of a building, or the number of a house without its street.
_UNIT = Caseless(
    r"\b(?:flat|apt|apartment|unit|interior|tower|plot|blk|block|house|door|number|no|room|bldg|"
    r"building|lot|villa|floor)(?: (?:no|number)\b)?(?:\.? ?#|\.? )"
    r"(?:\d{1,5}(?:[/-]\d{1,4})?[a-z]?|[a-z]-?\d{1,4}|[b-hj-z])(?![\w%]|[.,:/-]\d)"
    r"(?! (?:people|persons?|beds?|bedrooms?|rooms?|of|st|nd|rd|th|times|days|weeks|months|years|"
    r"hours|minutes|digits?|letters?)\b)"
)
_LETTER = re.compile(r".*\W[A-Za-z]", re.DOTALL)
# Longer turns speak of other units, blocks and numbers.
_MOST_WORDS = 14
# Words before an address that is confirmed.
_FRAME = Caseless(
    r"\b(?:address (?:is |was |as |to |on file |we have |you gave )*(?:still |now )?|"
    r"same address,? |still (?:at |in |on )?|"
    r"(?:deliver(?:y|ed)?|going|goes?|sent|send|ship(?:ped)?|mail(?:ed)?|"
    r"post(?:ed)?|come|bring|brought|moved|move|forward(?:ed)?|redirect(?:ed)?|courier(?:ed)?)"
    r"(?: (?:it|them|that|this|one|a letter|the (?:letter|card|parcel|package|order|rest)|"
    r"everything|out|on|you))* to |(?:live|lives|living|staying|are|is) at |"
    r"(?:^|(?<=[.!?] ))is (?:it )?)"
    r"(?=(?:[a-z]|#?\d))"
)
# With a capital, a digit, or one of the small words inside names of places.
_PLACE_WORD = re.compile(
    r"(?:of|the|y|de|la|le|les|du|del|der|den|von|van|upon|on|in|m|no|c/o)(?!\w)|"
    r"[A-ZÀ-Þ#\d][\w'’./-]*|- \d[\w-]*"
)
_NEXT_WORD = re.compile(r"(,? )(?=\S)")
_SMALL = frozenset("of the y de la le les du del der den von van upon on in".split())
_MOST_PLACE_WORDS = 14
_STOPS = re.compile(r"[.?!;:)]+$")
_CODES = Caseless(
    r"\b(?:zip(?: ?code)?|post ?code|postal code|pin ?code)s?"
    r"(?:\W{1,3}(?:is|was|are|it'?s|should be|will be|to|now|of|still|here|or)){0,3}"
    r"\W{1,3}(\d{5,6})(?:\W{1,3}(?:or|and|not)\W{1,2}(\d{5,6}))?(?![\w%]|[.,]\d)"
)


def houses(text: str, words: NameWords) -> Iterator[Span]:
    """Yield the streets with a number in a conversation about an address ("still 19 larkmoor?").

    Args:
        text: a turn.
        words: names and ordinary words.
    """
    for frame in _HOUSE.finditer(text):
        street = _STREET.match(text, frame.end())
        if street is None or NO_PLACE.match(text, frame.end()):
            continue
        name = street["name"].casefold()
        counted = name.endswith("s") and is_ordinary(name.removesuffix("s"))
        if not (
            counted or words.is_everyday(name) or name in FILLER or _MONTH_WORD.fullmatch(name)
        ):
            yield street.span()


def units(text: str) -> Iterator[Span]:
    """Yield the flats, blocks and house numbers of a turn that is about somebody's address.

    Args:
        text: a turn.
    """
    if len(text.split()) > _MOST_WORDS:
        return
    for match in _UNIT.finditer(text):
        said = text[match.start() : match.end()]
        # One letter is a tower in capitals only ("tower C", but "no i have").
        if not _LETTER.fullmatch(said) or said[-1].isupper():
            yield match.span()


def confirmed(text: str) -> Iterator[Span]:
    """Yield the addresses that a turn confirms or names as where something goes.

    Args:
        text: a turn with capitals, since in others places look like any words.
    """
    if lacks_case(text):
        return
    for frame in _FRAME.finditer(text):
        start = frame.end()
        end, parts = _place_end(text, start)
        said = text[start:end]
        capital = re.search(r"[A-ZÀ-Þ][a-zà-ÿ]", said) is not None
        numbered = re.search(r"\d", said) is not None
        if capital and (numbered or parts > 1) and len(said.split()) > 1:
            yield start, end


def _place_end(text: str, start: int) -> tuple[int, int]:
    """Return the end of a place whose words begin at `start`, and the number of its parts."""
    end, at, parts = start, start, 1
    for _ in range(_MOST_PLACE_WORDS):
        word = _PLACE_WORD.match(text, at)
        if word is None:
            break
        stop = _STOPS.search(word[0])
        if word[0] not in _SMALL:
            end = word.end() - (len(stop[0]) if stop else 0)
        gap = _NEXT_WORD.match(text, word.end())
        if (stop and not _is_short(word[0])) or gap is None:
            break
        parts += gap[1].startswith(",")
        at = gap.end()
    return end, parts


def _is_short(word: str) -> bool:
    """Return True for an abbreviation, whose full stop ends no sentence ("St.", "ul.")."""
    return word[:-1].isalpha() and word.endswith(".") and len(word) <= 4


def codes(text: str) -> Iterator[Span]:
    """Yield the postal codes of digits after a word for them, also two ("60608 or 60616").

    Args:
        text: a turn.
    """
    for match in _CODES.finditer(text):
        for group in (1, 2):
            if match[group]:
                yield match.span(group)
