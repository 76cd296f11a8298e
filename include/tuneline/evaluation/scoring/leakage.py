"""Show that training and validation hold neither a hold-out row nor a near-duplicate of one.

Two rows are alike by the definition of the data steps (the same text of a row, the same shingles,
the same threshold); the search is the one of `final_audit`, which shares nothing else with the one
that removed the duplicates. It finds 999 of 1,000 pairs at the threshold, and more above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.asking.rows import asked
from tuneline.data.near_duplicates.compared_text import compared_texts
from tuneline.data.near_duplicates.witness import cross_pairs
from tuneline.data.tables.rows import Row, base_id


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
    texts = compared_texts(own, own)
    sides = [1] * len(held) + [0] * len(seen)
    best: dict[int, tuple[float, int]] = {}
    for other, row, similarity in cross_pairs(texts, sides, threshold):
        found = (similarity, other - len(held))
        best[row] = max(best.get(row, found), found)
    return [
        Leak(held[row].row_id, seen[col].row_id, seen[col].split, round(similarity, 4))
        for row, (similarity, col) in sorted(best.items())
    ]
