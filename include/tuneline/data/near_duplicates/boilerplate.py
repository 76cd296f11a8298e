"""Find the text that nearly all prompts share, such as an instruction before each message.

It says nothing about a single row: left in, every row would be a near-duplicate of every other,
and a name found in it would be replaced in every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

# Fewer rows are no ground to call their common text boilerplate; shorter text is a coincidence
# ("I would like to") and does no harm.
MIN_ROWS, MIN_CHARS = 8, 20
SHARE = 0.8


@dataclass(frozen=True)
class Affixes:
    """What nearly all texts begin and end with; empty where there is nothing."""

    prefix: str = ""
    suffix: str = ""

    def cut(self, text: str) -> tuple[int, int]:
        """Where the text's own part starts and ends; the whole text where nothing would be left."""
        start = len(self.prefix) if self.prefix and text.startswith(self.prefix) else 0
        end = len(text)
        if self.suffix and text.endswith(self.suffix) and end - len(self.suffix) >= start:
            end -= len(self.suffix)
        return (start, end) if text[start:end].strip() else (0, len(text))

    def own(self, text: str) -> str:
        """The text's own part."""
        start, end = self.cut(text)
        return text[start:end]


def common_affixes(texts: Sequence[str]) -> Affixes:
    """The longest prefix and suffix that at least 80 % of distinct texts share."""
    distinct = sorted(set(texts))
    if len(distinct) < MIN_ROWS:
        return Affixes()
    prefix = _shared_prefix(distinct)
    suffix = _shared_prefix(sorted(text[::-1] for text in distinct))[::-1]
    return Affixes(prefix, suffix)


def _shared_prefix(ordered: Sequence[str]) -> str:
    """The longest prefix of a share of sorted texts: they stand next to each other."""
    window = ceil(SHARE * len(ordered))
    best = ""
    for start in range(len(ordered) - window + 1):
        shared = _common(ordered[start], ordered[start + window - 1])
        if len(shared) > len(best):
            best = shared
    return best if len(best) >= MIN_CHARS else ""


def _common(a: str, b: str) -> str:
    """The longest common prefix of two texts."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return a[:low]
