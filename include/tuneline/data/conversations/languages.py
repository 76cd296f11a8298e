"""Identify the language of a text, by its script or by the function words of twelve languages.

After Grefenstette, "Comparing two language identification schemes", 1995. A text with too few of
these words, or as many of two languages, stays unknown.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path

UNKNOWN = "unknown"
_LATIN = "LATIN"
# Japanese mixes three scripts.
_JAPANESE = dict.fromkeys(("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"), "CJK")
# A line for each language: its code, and the commonest words of its running text.
_WORDS_FILE = Path(__file__).with_name("function_words.txt")
_WORD = re.compile(r"[^\W\d_]+")
# Two words may be a quotation; more, within the first characters of a text, show its language.
LEAST_WORDS, LOOKED_AT = 3, 600


def language_of(text: str) -> str:
    """Return the code of a text's language, the name of its script, or `unknown`."""
    script = _script_of(text)
    if script != _LATIN:
        return script
    votes = _votes(text)
    best = sorted(votes.values(), reverse=True)
    if not best or best[0] in best[1:]:
        return UNKNOWN
    return max(votes, key=votes.__getitem__)


def foreign_language(text: str, declared: Iterable[str]) -> str | None:
    """Return the language or script of a text, None if it is unknown or declared.

    Where a language is declared that nothing is known of, none can be called foreign.
    """
    declared = set(declared)
    if declared - _known():
        return None
    script = _script_of(text)
    if script not in (_LATIN, UNKNOWN):
        return script
    votes = _votes(text[:LOOKED_AT])
    language = max(votes, key=votes.__getitem__, default="")
    home = max((votes.get(name, 0) for name in declared), default=0)
    return language if votes.get(language, 0) >= max(LEAST_WORDS, 2 * home) else None


def likeliest(text: str, languages: Sequence[str]) -> str:
    """Return the most likely language of a text, the first one if it is unknown."""
    votes = _votes(text[:LOOKED_AT])
    return max(languages, key=lambda name: votes.get(name, 0))


def _script_of(text: str) -> str:
    """Return the script of most of a text's letters, `unknown` without one."""
    if text.isascii():
        return _LATIN if _WORD.search(text) else UNKNOWN
    letters = [char for char in text if char.isalpha()]
    # The name of a letter begins with its script: LATIN SMALL LETTER A.
    names = (unicodedata.name(char, UNKNOWN).split(" ", 1)[0] for char in letters)
    scripts = Counter(_JAPANESE.get(name, name) for name in names)
    script, count = scripts.most_common(1)[0] if scripts else (UNKNOWN, 0)
    return script if 2 * count > len(letters) else UNKNOWN


@lru_cache(maxsize=64)
def _votes(text: str) -> dict[str, float]:
    """Return the number of a text's words by language; one of several languages counts less."""
    votes: dict[str, float] = {}
    for word in set(_WORD.findall(text.casefold())):
        languages = _languages().get(word, ())
        for language in languages:
            votes[language] = votes.get(language, 0.0) + 1 / len(languages)
    return votes


@cache
def _known() -> frozenset[str]:
    return frozenset(language for languages in _languages().values() for language in languages)


@cache
def _languages() -> dict[str, list[str]]:
    """Return the languages of each function word."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in _WORDS_FILE.read_text(encoding="utf-8").splitlines():
        language, words = line.split(":")
        for word in words.split():
            found[word].append(language)
    return found
