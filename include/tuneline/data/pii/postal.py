"""Find addresses by the postal code at their end, whatever their streets are called.

From the code the address is read backwards, over words with capitals and parts between commas, to
the number of a house or flat.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuneline.data.pii.answer_words import FILLER
from tuneline.data.pii.matching import LETTERED_POSTCODE, Span

# Codes of digits count after the name of a place: of the United States after a state, of India and
# of the continent after a comma, dash or word with a capital.
_CODES = (
    LETTERED_POSTCODE,
    re.compile(r"(?<=[A-Z]{2} )\d{5}(?:-\d{4})?(?![\w-]|[.,]\d)"),
    re.compile(r"(?<=- )\d{6}(?![\w-]|[.,]\d)|(?<=[a-z] )\d{6}(?=[,.;]?(?:$|\n| / ))"),
    re.compile(r"(?<=, )\d{5}(?= [A-ZÄÖÜ][a-zäöüß]{2,})"),
)
# Codes of letters hold the first, the others the second, which most texts do not.
_LETTERED, _LONG = re.compile(r"[A-Za-z]\d"), re.compile(r"\d{5}")
_WORD = re.compile(r"[^\s,;]+")
_SENTENCE = re.compile(r"(?<!\d)[.!?;:]\s+(?=[A-Z\d])|[;\n]|:(?!\d)| / ")
_MOST_WORDS, _MOST_CHARS = 12, 160
_HOUSE = re.compile(r"#?[A-Z]?-?\d{1,5}[A-Za-z]?(?:[/-]\w{1,5})*\.?")
_UNIT = frozenset(
    "flat unit suite apt apartment house plot door block no floor tower room shop".split()
)
# Words inside names of places.
_SMALL = frozenset("of the y de la le on upon under in by co".split())
_PLACE_AFTER = re.compile(r" [A-ZÄÖÜ][\w'’-]{2,}")


def postal_addresses(text: str) -> Iterator[Span]:
    """Yield the addresses that end with a postal code: characters start to end.

    Args:
        text: any text.
    """
    lettered = _LETTERED.search(text) is not None
    long = _LONG.search(text) is not None
    for number, pattern in enumerate(_CODES):
        if not (long if number else lettered):
            continue
        for code in pattern.finditer(text):
            start = _beginning(text, code.start())
            # A code alone has the shape of a product's, unless it is written in its two parts.
            parted = number == 0 and " " in code[0] and code[0].isupper()
            if start is None and not parted:
                continue
            if start is None and not text.isupper():
                start = _named_parts(text, code.start())
            place = _PLACE_AFTER.match(text, code.end()) if number == len(_CODES) - 1 else None
            yield code.start() if start is None else start, place.end() if place else code.end()


def _words_before(text: str, code: int) -> list[re.Match[str]]:
    """Return the last words of the sentence before the code that begins at `code`."""
    first = max(0, code - _MOST_CHARS)
    ends = [match.end() for match in _SENTENCE.finditer(text, first, code)]
    return list(_WORD.finditer(text, ends[-1] if ends else first, code))[-_MOST_WORDS:]


def _named_parts(text: str, code: int) -> int | None:
    """Return where the parts with capitals begin that stand right before a code, None if none do.

    Houses without a number have a name ("The Old Forge, Church Lane, Staverton, NN11 4KD").
    """
    start = None
    for word in reversed(_words_before(text, code)):
        lowered = word[0].casefold().strip(".-")
        if word[0][0].isupper() and lowered not in FILLER - _SMALL:
            start = word.start()
        elif lowered not in _SMALL:
            break
    return start


def _beginning(text: str, code: int) -> int | None:
    """Return where the address begins whose postal code begins at `code`, None if it is none."""
    start, after = None, False
    for word in reversed(_words_before(text, code)):
        lowered = word[0].casefold().strip(".-")
        if _HOUSE.fullmatch(word[0]):
            start, after = word.start(), True
        elif after and word[0][0].isupper() and start is not None and lowered not in FILLER:
            # The street stands before its number elsewhere.
            start = word.start()
        elif lowered in _UNIT:
            start = word.start() if start is not None else None
        elif lowered in FILLER and word[0].islower():
            break
        else:
            after = False
    return start
