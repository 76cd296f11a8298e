"""Find the most similar of the rows that were written so far, exactly.

The sample's promise of variety rests on sets of n-grams (the definition in
`near_duplicates.shingles`), not on the searches that the sample tests. The joins there compare all
texts at once; here rows come one by one, and most are compared and thrown away.
"""

from __future__ import annotations

from tuneline.data.near_duplicates.shingles import char_grams, normalise, word_grams


class NearIndex:
    """An index of rows that gives the greatest similarity of a new row to any of them.

    Each gram is a bit of an integer, so that one comparison is an AND and two popcounts:
    900 short texts against each other take well under a second.
    """

    def __init__(self) -> None:
        self._bits: dict[str, int] = {}
        self._masks: list[tuple[int, ...]] = []

    def masks(self, *texts: str) -> tuple[int, ...]:
        """Return the masks of the views of one row: 5-grams and 3-grams of each text."""
        views = (
            grams(text) for text in map(normalise, texts) for grams in (char_grams, word_grams)
        )
        return tuple(self._mask(view) for view in views)

    def _mask(self, grams: frozenset[str]) -> int:
        mask = 0
        for gram in grams:
            mask |= 1 << self._bits.setdefault(gram, len(self._bits))
        return mask

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
