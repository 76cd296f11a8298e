"""Proof that no hold-out row, nor a near-duplicate of one, was seen before.

Deduplication finds candidates by MinHash and bands. This check takes another
road on purpose: the exact Jaccard similarity of every hold-out row with every
row of the other splits, from one product of sparse incidence matrices. What
one of the two gets wrong, the other shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tuneline.evaluation.rows import Row

# Characters in a shingle. The usual value for short texts; word shingles of a
# message with six words would let one changed word hide a duplicate.
SHINGLE = 5
# Hold-out rows in one product, so that its result stays small.
BLOCK = 256


@dataclass(frozen=True)
class Leak:
    """A hold-out row and what it resembles in another split."""

    row_id: str
    other_id: str
    other_split: str
    similarity: float


def same_ids(held: Sequence[Row], seen: Sequence[Row]) -> list[str]:
    """Row ids that are in the hold-out and elsewhere, without the `#k` of a split row."""
    elsewhere = {row.row_id.partition("#")[0] for row in seen}
    return sorted(row.row_id for row in held if row.row_id.partition("#")[0] in elsewhere)


def near_duplicates(held: Sequence[Row], seen: Sequence[Row], threshold: float) -> list[Leak]:
    """Hold-out rows whose question resembles one of the other rows.

    Args:
        held: rows of the hold-out.
        seen: rows of training and validation.
        threshold: Jaccard similarity of 5-character shingles from which two are alike.

    Returns:
        For each such hold-out row the most similar other row.
    """
    if not held or not seen:
        return []
    vocabulary: dict[str, int] = {}
    ours = _incidence([row.asked for row in held], vocabulary)
    theirs = _incidence([row.asked for row in seen], vocabulary)
    width = len(vocabulary)
    ours.resize((len(held), width))
    theirs.resize((len(seen), width))
    return list(_alike(held, seen, ours, theirs, threshold))


def _alike(
    held: Sequence[Row], seen: Sequence[Row], ours: Any, theirs: Any, threshold: float
) -> Iterator[Leak]:
    import numpy as np

    sizes_ours = np.asarray(ours.sum(axis=1)).ravel()
    sizes_theirs = np.asarray(theirs.sum(axis=1)).ravel()
    for start in range(0, len(held), BLOCK):
        shared = (ours[start : start + BLOCK] @ theirs.T).tocoo()
        union = sizes_ours[start + shared.row] + sizes_theirs[shared.col] - shared.data
        similarity = shared.data / union
        best: dict[int, tuple[float, int]] = {}
        for at in np.flatnonzero(similarity >= threshold):
            found = (float(similarity[at]), int(shared.col[at]))
            row = start + int(shared.row[at])
            best[row] = max(best.get(row, (0.0, -1)), found)
        for row, (value, col) in sorted(best.items()):
            yield Leak(held[row].row_id, seen[col].row_id, seen[col].split, round(value, 4))


def shingles(text: str) -> set[str]:
    """The set of 5-character shingles of a text, case and spacing ignored."""
    plain = " ".join(text.casefold().split())
    return {plain[at : at + SHINGLE] for at in range(max(1, len(plain) - SHINGLE + 1))}


def _incidence(texts: Sequence[str], vocabulary: dict[str, int]) -> Any:
    """Sparse 0/1 matrix, texts × shingles; `vocabulary` grows as shingles are met."""
    import numpy as np
    from scipy.sparse import csr_matrix

    columns: list[int] = []
    ends = [0]
    for text in texts:
        columns.extend(vocabulary.setdefault(one, len(vocabulary)) for one in shingles(text))
        ends.append(len(columns))
    ones = np.ones(len(columns), dtype=np.int32)
    return csr_matrix((ones, columns, ends), shape=(len(texts), max(1, len(vocabulary))))
