"""Find the most similar of the rows that were written so far, exactly.

The sample's promise of variety rests on sets of n-grams (the definition in
`near_duplicates.shingles`), not on the searches that the sample tests. The joins there compare all
texts at once; here rows come one by one, and most are compared and thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from tuneline.data.near_duplicates.shingles import char_grams, normalise, word_grams

# The sets of grams of a row: characters and words of each of its texts.
Views = tuple[frozenset[str], ...]


class NearIndex:
    """An index of rows that gives the greatest similarity of a new row to any of them.

    For each gram of a view it knows the rows that have it; those of grams that all rows have, as
    those of a shared system turn, are only counted.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[int, str], list[int]] = {}
        self._sizes: list[Sequence[int]] = []

    def views(self, *texts: str) -> Views:
        """Return the views of one row: 5-grams and 3-grams of each text."""
        return tuple(
            grams(text) for text in map(normalise, texts) for grams in (char_grams, word_grams)
        )

    def nearest(self, views: Views, skip: int | None = None) -> float:
        """Return the greatest Jaccard similarity in any view to any row but row `skip`."""
        total = len(self._sizes)
        if not total:
            return 0.0
        best = 0.0
        for number, grams in enumerate(views):
            found = [self._rows.get((number, gram), []) for gram in grams]
            some = chain.from_iterable(rows for rows in found if len(rows) < total)
            shared = np.bincount(np.fromiter(some, np.intp), minlength=total)
            shared += sum(len(rows) == total for rows in found)
            either = np.array([sizes[number] for sizes in self._sizes]) + len(grams) - shared
            if skip is not None:
                shared[skip] = 0
            best = max(best, float((shared / either).max()))
        return best

    def add(self, views: Views) -> int:
        """Add a row and return its number."""
        row = len(self._sizes)
        self._sizes.append(tuple(map(len, views)))
        for number, grams in enumerate(views):
            for gram in grams:
                self._rows.setdefault((number, gram), []).append(row)
        return row
