"""Find codes and names that are spelled letter by letter, as callers do.

"Lima mike six eight t w papa" is a code by its letters and digits, in the words of the
[spelling alphabet](https://www.icao.int/Pages/AlphabetRadiotelephony.aspx) or without them;
"s o l v e i g" is a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuneline.data.pii.caseless import Caseless
from tuneline.data.pii.matching import ONES

_ALPHABET = (
    "alpha|alfa|bravo|charlie|delta|echo|foxtrot|golf|hotel|india|juliett?|kilo|lima|mike|november|"
    "oscar|papa|quebec|romeo|sierra|tango|uniform|victor|whiskey|x[ -]?ray|yankee|zulu"
)
_DIGIT = rf"(?:zero|nought|oh|{ONES}|\d{{1,4}})"
_TIMES = r"(?:(?:double|triple|treble) )"
_UNIT = (
    rf"(?:{_TIMES}?(?:[a-z] (?:as in|for|like in|like) [a-z]+|(?:{_ALPHABET})|{_DIGIT}|[a-z])"
    r"(?![\w'’]))"
)
_GAP = r"(?:,? (?:(?:uh|um|and|dash|hyphen|then|slash|space) )?|-)"
_RUN = Caseless(rf"(?<![\w'’@.$£€]){_UNIT}(?:{_GAP}{_UNIT}){{3,40}}(?![%@])")
# Without a letter that is no word, or a word of the alphabet, nothing is spelled.
_HINT = Caseless(rf"(?<![\w'’.])(?:[b-hj-tv-z] (?=\w)|(?:{_ALPHABET})\b)")
_PIECE = re.compile(
    rf"(?P<letter>[a-z] (?:as in|for|like in|like) [a-z]+|{_ALPHABET}|[a-z](?!\w))|"
    rf"(?P<digit>{_DIGIT})|[a-z]+",
    re.IGNORECASE,
)
# Fewest signs of a code, and letters of a name; shorter ones are abbreviations ("i d", "p o box").
_LEAST_CODE, _LEAST_DIGITS, _LEAST_NAME = 5, 2, 4
# A word before what is spelled ("it's a f as in frank"), or after it ("d l a volkswagen").
_BEFORE = re.compile(r"(?:a|i|u) ", re.IGNORECASE)
_AFTER = re.compile(r"(?:,? (?:and|then|or|uh|um))*,? (?:a|i|u)(?: (?:oh|one))?$", re.IGNORECASE)
# Between the sides of a box.
_TIMES_SIGN = "x"


def spelled(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the codes and names that are spelled: start, end and entity.

    Args:
        text: a turn of a conversation.
    """
    if not _HINT.found_in(text):
        return
    for run in _RUN.finditer(text):
        start, end = run.span()
        before = _BEFORE.match(text, start)
        start = before.end() if before else start
        after = _AFTER.search(text, start, end)
        if after and text[end : end + 2].strip().isalpha():
            end = after.start()
        pieces = list(_PIECE.finditer(text, start, end))
        letters = sum(piece["letter"] not in (None, _TIMES_SIGN) for piece in pieces)
        digits = sum(piece["digit"] is not None for piece in pieces)
        if digits >= _LEAST_DIGITS and letters and letters + digits >= _LEAST_CODE:
            yield start, end, "ID_NUMBER"
        elif not digits and letters >= _LEAST_NAME:
            yield start, end, "PERSON"
