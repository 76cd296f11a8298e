"""Search for patterns that ignore case, several times as fast as with `re.IGNORECASE`.

With that flag `re` tries every alternative of a pattern at every character. Without it, it first
compares the alternative's first letter. So text of ASCII, which is as long in lower case, is
searched in lower case by the pattern without the flag; other text is searched with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_ESCAPED = re.compile(r"\\.")


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

    def found_in(self, text: str) -> bool:
        """Return True if the pattern occurs in a text."""
        if text.isascii():
            return self._lower.search(text.lower()) is not None
        return self._any.search(text) is not None

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
