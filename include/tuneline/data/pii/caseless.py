"""Search for patterns that ignore case, several times as fast as with `re.IGNORECASE`.

With that flag `re` tries every alternative of a pattern at every character. Without it, it first
compares the alternative's first letter. So text of ASCII, which is as long in lower case, is
searched in lower case by the pattern without the flag; other text is searched with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

_ESCAPED = re.compile(r"\\.")
# What is remembered of a word is its beginning, up to the character after a short one, and two
# digits of a number, since numbers hardly ever repeat.
_WORD = re.compile(r"(\d\w?)\w*|(\w{1,5}(?:\W|$))|(\w{5})\w+")


class Caseless:
    """A pattern that ignores case.

    Args:
        pattern: the pattern, whose letters are all lower case.

    Raises:
        ValueError: if it has an upper-case letter, which no text in lower case holds.
    """

    def __init__(self, pattern: str) -> None:
        if any(map(str.isupper, _ESCAPED.sub("", pattern.replace("(?P<", "")))):
            raise ValueError(f"the pattern {pattern!r} has an upper-case letter")
        self._any = re.compile(pattern, re.IGNORECASE)
        self._lower = re.compile(pattern)

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        """Yield the matches; positions are those of the text, letters may be in lower case."""
        if text.isascii():
            return self._lower.finditer(text.lower())
        return self._any.finditer(text)

    def search(self, text: str, start: int = 0) -> re.Match[str] | None:
        """Return the first match that begins at a position or after it, as `finditer` does."""
        if text.isascii():
            return self._lower.search(text.lower(), start)
        return self._any.search(text, start)

    def found_in(self, text: str) -> bool:
        """Return True if the pattern occurs in a text."""
        return self.search(text) is not None

    def covers(self, text: str) -> bool:
        """Return True if matches, one after the other, leave no character of a text."""
        pattern = self._any
        if text.isascii():
            pattern, text = self._lower, text.lower()
        at = 0
        while at < len(text):
            match = pattern.match(text, at)
            if match is None or match.end() == at:
                return False
            at = match.end()
        return True


class CaselessWords(Caseless):
    """A pattern of hundreds of alternatives that ignores case.

    Every match has to begin with the first character of a word. Where words stand with which no
    alternative begins, the pattern is not tried, which takes a quarter of the time.
    """

    def __init__(self, pattern: str) -> None:
        super().__init__(pattern)
        self._begins = _Beginnings(pattern)

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        """Yield the matches; positions are those of the text, letters may be in lower case."""
        if not text.isascii():
            yield from self._any.finditer(text)
            return
        lowered, end, begins = text.lower(), 0, self._begins
        for word in _WORD.finditer(lowered):
            if begins[word[word.lastindex or 0]] and word.start() >= end:
                match = self._lower.match(lowered, word.start())
                if match is not None:
                    yield match
                    end = match.end()


class _Beginnings(dict[str, bool]):
    """A cache of beginnings of words: True if a match of the pattern can start with one."""

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._pattern = pattern

    def __missing__(self, word: str) -> bool:
        self[word] = self._compiled.match(word, partial=True) is not None
        return self[word]

    @cached_property
    def _compiled(self) -> Any:
        # `re` cannot tell that a text is the beginning of a match.
        import regex

        return regex.compile(self._pattern)
