"""Prove that training and validation hold neither a hold-out row nor a near-duplicate of one.

This is the independent witness of the separation. Two rows are alike by the definition of the data
steps (the same text of a row, the same shingles, the same threshold), but the search is another on
purpose: the data steps remove and audit near-duplicates by MinHash and by the exact join, which
both work on hashes and skip pairs by filters. Here every pair of rows is compared, by a product of
sparse matrices over the n-gram strings. It is short enough to be checked by reading, and a fault in
either of the other two shows here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tuneline.asking.rows import asked
from tuneline.data.near_duplicates.boilerplate import common_affixes
from tuneline.data.near_duplicates.shingles import LONG, SHORT, char_grams, normalise, word_grams
from tuneline.data.tables.rows import Row, base_id

# Hold-out rows of one product, so that its result stays small.
BLOCK = 256


@dataclass(frozen=True)
class Leak:
    """A hold-out row and the most similar row of another split."""

    row_id: str
    other_id: str
    other_split: str
    similarity: float


def same_ids(held: Sequence[Row], seen: Sequence[Row]) -> list[str]:
    """Return the hold-out rows whose source row (the id without its part `#k`) was seen too."""
    elsewhere = {base_id(row.row_id) for row in seen}
    return sorted(row.row_id for row in held if base_id(row.row_id) in elsewhere)


def near_duplicates(held: Sequence[Row], seen: Sequence[Row], threshold: float) -> list[Leak]:
    """Find the hold-out rows whose question resembles that of a row that was seen.

    Args:
        held: rows of the hold-out.
        seen: rows of training and validation.
        threshold: Jaccard similarity from which two rows are near-duplicates.

    Returns:
        A leak for each such hold-out row, with the most similar other row.
    """
    own = [asked(row) for row in (*held, *seen)]
    affixes = common_affixes(own)
    texts = [normalise(affixes.own(text)) or normalise(text) for text in own]
    best: dict[int, tuple[float, int]] = {}
    short = [at for at, text in enumerate(texts) if len(text) <= SHORT]
    long = [at for at, text in enumerate(texts) if len(text) > LONG]
    for grams, among in ((char_grams, short), (word_grams, long)):
        first = sum(at < len(held) for at in among)
        for a, b, similarity in _alike([texts[at] for at in among], first, grams, threshold):
            found = (similarity, among[b] - len(held))
            best[among[a]] = max(best.get(among[a], found), found)
    return [
        Leak(held[row].row_id, seen[col].row_id, seen[col].split, round(similarity, 4))
        for row, (similarity, col) in sorted(best.items())
    ]


def _alike(
    texts: Sequence[str], first: int, grams: Callable[[str], frozenset[str]], threshold: float
) -> Iterator[tuple[int, int, float]]:
    """Yield the pairs at or above the threshold of one of the first texts and one of the others."""
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer

    if not 0 < first < len(texts):
        return
    # Each row has a 1 in the column of each shingle of its text.
    rows = CountVectorizer(analyzer=grams, binary=True, dtype=np.int32).fit_transform(texts)
    sizes = np.diff(rows.indptr)
    others = rows[first:].T
    for start in range(0, first, BLOCK):
        shared = (rows[start : min(start + BLOCK, first)] @ others).tocoo()
        a, b = start + shared.row, first + shared.col
        similarity = shared.data / (sizes[a] + sizes[b] - shared.data)
        for at in np.flatnonzero(similarity >= threshold).tolist():
            yield int(a[at]), int(b[at]), float(similarity[at])
