"""Tell how a text uses capital letters, and which words it shows to be no names."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

# A word in this many texts without capitals is not a name; in fewer it may be one customer's name.
LEAST_UNCASED = 20
WORD = re.compile(r"(?<![\w@.-])[^\W\d_]{2,}(?![\w@]|[.-]\w)")
_TITLE_CASE = re.compile(r"[A-ZÀ-Þ][a-zß-ÿ'’]")
_ASCII_LETTERS = string.ascii_letters.encode()
_ASCII_CAPITALS = string.ascii_uppercase.encode()


def common_words(texts: Iterable[str]) -> frozenset[str]:
    """Return the words that are in lower case in many texts, so they are not names.

    Texts that use capital letters count most: in others names are in lower case too, and a word
    must be in many of them not to be a name.
    """
    cased: Counter[str] = Counter()
    uncased: Counter[str] = Counter()
    total = 0
    for text, times in Counter(texts).items():
        total += times
        # Parts of addresses such as `anna.smith@…` are not words.
        words = set(filter(str.islower, WORD.findall(text)))
        counts = uncased if text.islower() else cased
        if times == 1:
            counts.update(words)
        else:
            counts.update(dict.fromkeys(words, times))
    least = max(2, total // 1000)
    often = max(LEAST_UNCASED, total // 100)
    return frozenset(
        [word for word, count in cased.items() if count >= least]
        + [word for word, count in uncased.items() if count >= often]
    )


def lacks_case(text: str) -> bool:
    """Return True if no word of a text has a first capital letter, or nearly all are capitals.

    Codes and abbreviations have capitals everywhere ("im ines, order WEB009").
    """
    if _TITLE_CASE.search(text) is None:
        return True
    if text.isascii():
        raw = text.encode()
        letters = len(raw) - len(raw.translate(None, _ASCII_LETTERS))
        capitals = len(raw) - len(raw.translate(None, _ASCII_CAPITALS))
    else:
        letters = sum(map(str.isalpha, text))
        capitals = sum(map(str.isupper, text))
    return capitals <= 1 or capitals >= 0.8 * letters
