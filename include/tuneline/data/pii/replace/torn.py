"""Count what an answer shared with the turns before it and, once scrubbed, no longer shares."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from tuneline.data.conversations.answers import answer_object
from tuneline.data.pii.find.texts import said, texts_of
from tuneline.data.tables.rows import Message

_WORD = re.compile(r"\w+")
# A string in JSON within a turn; its escapes are gone.
_STRING = re.compile(r'"([^"]*)"')
# Shorter words, and a digit alone, may be in two turns by chance; runs of at most so many words
# are kept in a set.
_LEAST, _LEAST_DIGITS, _MOST_WORDS = 3, 2, 24
Words = tuple[str, ...]


def torn_copies(
    before: Sequence[Message], after: Sequence[Message], label_field: str | None
) -> int:
    """Count the values and words of a row's answers that scrubbing tore from the turns before.

    A whole answer, a value of JSON or an argument of a tool that stood in an earlier turn must
    stand in one; a word of both must stay in both, or go from the answer and at least once from the
    turns; and if all words that are gone from an answer stood earlier, so must what took their
    place. What the system says does not count. A number in JSON that became a text is torn.
    """
    torn, earlier = 0, (_Earlier(), _Earlier())
    for old, new in zip(before, after, strict=True) if before != after else ():
        if old["role"] == "assistant":
            torn += _torn(_Answer(old, label_field), _Answer(new, label_field), *earlier)
        if old["role"] != "system":
            earlier[0].add(old["content"])
            earlier[1].add(new["content"])
    return torn


class _Answer:
    """The words of an answer, without the names of its fields, and those of its values."""

    def __init__(self, message: Message, label_field: str | None) -> None:
        texts = [text for _, text in texts_of([message], label_field)]
        if texts == [message["content"]]:
            texts = [said(texts[0], 0, len(texts[0]))]
            values = [*texts, *_STRING.findall(texts[0])]
        else:
            values = texts
        self.values = [_words(value) for value in values]
        self.numbers = _numbers(answer_object(message["content"]))
        self.words = frozenset(word for text in texts for word in _WORD.findall(text))


class _Earlier:
    """What the turns before an answer say."""

    def __init__(self) -> None:
        self._turns: list[Words] = []
        self._runs: dict[int, set[Words]] = {}
        self.words: Counter[str] = Counter()

    def add(self, text: str) -> None:
        """Add a turn."""
        found = _WORD.findall(said(text, 0, len(text)))
        self.words.update(found)
        self._turns.append(tuple(map(str.casefold, found)))
        self._runs.clear()

    def has(self, value: Words) -> bool:
        """Return True if a value stands in one of the turns as a whole."""
        size = len(value)
        if size > _MOST_WORDS:
            return any(f" {' '.join(value)} " in f" {' '.join(turn)} " for turn in self._turns)
        if size not in self._runs:
            self._runs[size] = {
                turn[at : at + size] for turn in self._turns for at in range(len(turn) - size + 1)
            }
        return value in self._runs[size]


def _numbers(value: Any) -> int:
    """Count the numbers in a JSON answer."""
    if isinstance(value, dict | list):
        return sum(map(_numbers, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(text: str) -> Words:
    return tuple(map(str.casefold, _WORD.findall(text)))


def _torn(old: _Answer, new: _Answer, before: _Earlier, after: _Earlier) -> int:
    if not before.words:
        return 0
    pairs = zip_longest(old.values, new.values, fillvalue=())
    values = sum(before.has(one) and not after.has(other) for one, other in pairs)
    shared = {word for word in old.words & before.words.keys() if _is_telling(word)}
    words = sum(
        word not in after.words if word in new.words else after.words[word] >= before.words[word]
        for word in shared
    )
    gone, came = (
        {*map(str.casefold, one)} - {*map(str.casefold, other)}
        for one, other in ((old.words, new.words), (new.words, old.words))
    )
    strangers = came - {*map(str.casefold, after.words)}
    numbers = max(0, old.numbers - new.numbers)
    return (
        numbers + values + words + (bool(strangers) and gone <= {*map(str.casefold, before.words)})
    )


def _is_telling(word: str) -> bool:
    return len(word) >= (_LEAST_DIGITS if any(map(str.isdecimal, word)) else _LEAST)
