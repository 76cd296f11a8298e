"""Find the text that nearly all prompts share, such as an instruction before each message.

It belongs to no single row: left in, every row would be a near-duplicate of every other, and a name
in it would be replaced in every row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from os.path import commonprefix

# The common text of fewer rows may be chance; a shorter text ("I would like to") is a coincidence
# and does no harm.
MIN_ROWS, MIN_CHARS = 8, 20
SHARE = 0.8


@dataclass(frozen=True)
class Affixes:
    """The prefix and the suffix that nearly all texts share; empty if there is none."""

    prefix: str = ""
    suffix: str = ""

    def cut(self, text: str) -> tuple[int, int]:
        """Return start and end of the text's own part, of the whole text if that part is blank."""
        start = len(self.prefix) if self.prefix and text.startswith(self.prefix) else 0
        end = len(text)
        if self.suffix and text.endswith(self.suffix) and end - len(self.suffix) >= start:
            end -= len(self.suffix)
        return (start, end) if text[start:end].strip() else (0, len(text))

    def own(self, text: str) -> str:
        """Return the text's own part."""
        start, end = self.cut(text)
        return text[start:end]


def common_affixes(texts: Iterable[str]) -> Affixes:
    """Return the longest prefix and suffix that at least 80 % of the distinct texts share."""
    distinct = sorted(set(texts))
    if len(distinct) < MIN_ROWS:
        return Affixes()
    prefix = _shared_prefix(distinct)
    suffix = _shared_prefix(sorted(text[::-1] for text in distinct))[::-1]
    return Affixes(prefix, suffix)


def _shared_prefix(ordered: Sequence[str]) -> str:
    """Return the longest prefix that 80 % of sorted texts share; these texts are adjacent."""
    window = ceil(SHARE * len(ordered))
    best = ""
    for first, last in zip(ordered, ordered[window - 1 :], strict=False):
        if last.startswith(first[: len(best) + 1]):
            best = max(best, commonprefix([first, last]), key=len)  # noqa: RUF071 - no paths
    return best if len(best) >= MIN_CHARS else ""
