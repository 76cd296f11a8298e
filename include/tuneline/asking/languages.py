"""Guess the language of a short text, to group rows by it.

A text in another script than Latin is named by its script. One in Latin script is told by the
commonest function words of twelve languages. It is a guess for groups of rows: what has too few of
those words, or as many of two languages, stays `unknown`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

UNKNOWN = "unknown"
_LATIN = "LATIN"

# A line for each language: its code, and the commonest words of its running text.
_WORDS_FILE = Path(__file__).with_name("function_words.txt")
_WORD = re.compile(r"[^\W\d_]+")


@cache
def _languages() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for line in _WORDS_FILE.read_text(encoding="utf-8").splitlines():
        language, words = line.split(":")
        for word in words.split():
            found[word] = (*found.get(word, ()), language)
    return found


def _script_of(text: str) -> str:
    """Return the script of most of a text's letters, `unknown` without one."""
    if text.isascii():
        return _LATIN if _WORD.search(text) else UNKNOWN
    letters = [char for char in text if char.isalpha()]
    # The name of a letter begins with its script: LATIN SMALL LETTER A.
    scripts = Counter(unicodedata.name(char, UNKNOWN).split(" ", 1)[0] for char in letters)
    script, count = scripts.most_common(1)[0] if scripts else (UNKNOWN, 0)
    return script if 2 * count > len(letters) else UNKNOWN


def language_of(text: str) -> str:
    """Return the code of a text's language, the name of its script, or `unknown`."""
    script = _script_of(text)
    if script != _LATIN:
        return script
    votes: dict[str, float] = {}
    for word in _WORD.findall(text.casefold()):
        languages = _languages().get(word, ())
        for language in languages:
            # A word of several languages says less.
            votes[language] = votes.get(language, 0.0) + 1 / len(languages)
    best = sorted(votes.values(), reverse=True)
    if not best or best[0] in best[1:]:
        return UNKNOWN
    return max(votes, key=votes.__getitem__)
