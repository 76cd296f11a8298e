"""Exact Jaccard similarity of short texts, for the sample's own promise of variety.

Character 5-grams and word 3-grams as in the near-duplicate literature (Broder, "On the
resemblance and containment of documents", 1997); exact sets, no sketches, so that what the
sample says about its planted near-duplicates does not rest on the code that it tests.
"""

from __future__ import annotations

import re

CHARS = 5
WORDS = 3


def normalise(text: str) -> str:
    """Return the text in lower case, with every run of non-letters and non-digits as one space."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def char_grams(text: str) -> frozenset[str]:
    """Return the set of character 5-grams of a text, the text itself if it is shorter."""
    return frozenset(text[i : i + CHARS] for i in range(max(1, len(text) - CHARS + 1)))


def word_grams(text: str) -> frozenset[str]:
    """Return the set of word 3-grams of a text, the text itself if it is shorter."""
    words = text.split()
    return frozenset(" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the size of the intersection over the size of the union, 1.0 for two empty sets."""
    union = len(a | b)
    return len(a & b) / union if union else 1.0


class NearIndex:
    """Finds the greatest similarity of a text to all texts added before, exactly.

    Each gram is a bit of an integer, so that one comparison is an AND and two popcounts:
    900 short texts against each other take well under a second.
    """

    def __init__(self) -> None:
        self._bits: dict[str, int] = {}
        self._masks: list[tuple[int, ...]] = []

    def _mask(self, grams: frozenset[str]) -> int:
        mask = 0
        for gram in grams:
            mask |= 1 << self._bits.setdefault(gram, len(self._bits))
        return mask

    def masks(self, *texts: str) -> tuple[int, ...]:
        """Return the masks of the views of one row: 5-grams and 3-grams of each text."""
        views = []
        for text in map(normalise, texts):
            views.append(self._mask(char_grams(text)))
            views.append(self._mask(word_grams(text)))
        return tuple(views)

    def nearest(self, masks: tuple[int, ...], skip: int | None = None) -> float:
        """Return the greatest Jaccard similarity in any view to any row but row `skip`."""
        best = 0.0
        sizes = [mask.bit_count() for mask in masks]
        for row, others in enumerate(self._masks):
            if row == skip:
                continue
            for mask, size, other in zip(masks, sizes, others, strict=True):
                shared = (mask & other).bit_count()
                best = max(best, shared / (size + other.bit_count() - shared))
        return best

    def add(self, masks: tuple[int, ...]) -> int:
        """Add a row and return its number."""
        self._masks.append(masks)
        return len(self._masks) - 1
