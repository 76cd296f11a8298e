"""Recognise ordinary words, which are hardly names, by dictionaries and typing slips."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib import resources
from itertools import islice
from typing import Any

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Length of the words in which a slip is looked for: a shorter word is a slip of some word always.
_SLIP_CHARS = range(4, 20)
EVERYDAY_WORDS = 2500


@cache
def _dictionary() -> Any:
    # Gates import this module too, and Airflow's environment has no dictionary.
    from hunspell import Hunspell

    return Hunspell("en_US")


# British spellings of words that the dictionary has in the American one.
_SPELLINGS = (
    (re.compile(r"(?<=[a-z]{2})our(?=s?$|ed$|ing$|ite|able|ful)"), "or"),
    (re.compile(r"(?<=[a-z]{3})is(?=e[drs]?$|ing$|ation)"), "iz"),
    (re.compile(r"(?<=[a-z]{2})tre(?=s?$)"), "ter"),
    (re.compile(r"(?<=[a-z]{3})ll(?=ed$|ing$|ers?$)"), "l"),
    (re.compile(r"(?<=[a-z]{3})ogue(?=s?$)"), "og"),
)


@lru_cache(maxsize=200_000)
def is_ordinary(word: str) -> bool:
    """Return True if an English dictionary has a word in lower case; some are names as well."""
    try:
        spell = _dictionary().spell
        return bool(spell(word)) or any(
            spell(other)
            for pattern, instead in _SPELLINGS
            if (other := pattern.sub(instead, word)) != word
        )
    except UnicodeEncodeError:
        # The dictionary is in Latin-1, and so are all its words.
        return False


@cache
def everyday_words() -> frozenset[str]:
    """Return the commonest English words that are not names."""
    lines = resources.files("symspellpy").joinpath("frequency_dictionary_en_82_765.txt")
    with lines.open(encoding="utf-8-sig") as file:
        # Sorted by frequency; there are names among them.
        commonest = [line.split()[0] for line in islice(file, EVERYDAY_WORDS)]
    return frozenset(filter(is_ordinary, commonest))


def is_slip(word: str, words: frozenset[str]) -> bool:
    """Return True if a word is one typing slip away from one of the words ("pelase", "mondday").

    Args:
        word: word in lower case.
        words: words that could be meant.
    """
    if len(word) not in _SLIP_CHARS:
        return False
    splits = [(word[:at], word[at:]) for at in range(len(word) + 1)]
    return any(
        left + right[1:] in words
        or left + right[1:2] + right[:1] + right[2:] in words
        or any(left + char + right in words for char in _LETTERS)
        or any(left + char + right[1:] in words for char in _LETTERS)
        for left, right in splits
    )
