"""Search text from outside by RE2, whose time is linear in the text, whatever the text is.

RE2 has no look-around. A pattern here takes the character before a hit with it and marks the hit
as its first group; what must not follow is checked after the match. Its classes such as `\\w` are
those of ASCII.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import re2

# The signs of a word in any script, for use in brackets.
WORD = r"\pL\pN_"


class LinearPattern:
    """A pattern that RE2 runs."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re2.compile(pattern)
        self._group = min(1, self._pattern.groups)

    def finditer(self, text: str) -> Iterator[Any]:
        """Yield the matches, which have the methods of `re.Match`."""
        return self._pattern.finditer(_encodable(text))

    def match(self, text: str) -> Any:
        """Return the match at the beginning of a text, None if there is none."""
        return self._pattern.match(_encodable(text))

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the spans of the first group, or of all of the pattern if it has none."""
        for match in self.finditer(text):
            yield match.span(self._group)

    def sub(self, replacement: str, text: str) -> str:
        """Return a text with each match replaced."""
        replaced: str = self._pattern.sub(replacement, _encodable(text))
        return replaced


def _encodable(text: str) -> str:
    """Return a text of the same length without lone surrogates, which UTF-8 can't state."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
