"""Proof that no hold-out row, nor a near-duplicate of one, was seen before.

What counts as alike is deduplication's definition (the same text of a row, the
same shingles, the same threshold); the road to it is another one on purpose.
Deduplication finds candidates by MinHash and bands; here the exact Jaccard
similarity of every hold-out row with every row of the other splits comes from a
product of sparse incidence matrices. What one of the two gets wrong, the other
shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tuneline.data.near_duplicates.boilerplate import common_affixes
from tuneline.data.near_duplicates.shingles import CHARS, LONG, SHORT, WORDS, normalise
from tuneline.data.tables.rows import Row, base_id
from tuneline.harness.rows import asked

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
    """Hold-out rows whose source row (without the `#k` of a split one) is elsewhere too."""
    elsewhere = {base_id(row.row_id) for row in seen}
    return sorted(row.row_id for row in held if base_id(row.row_id) in elsewhere)


def near_duplicates(held: Sequence[Row], seen: Sequence[Row], threshold: float) -> list[Leak]:
    """Hold-out rows whose question resembles one of the other rows.

    Args:
        held: rows of the hold-out.
        seen: rows of training and validation.
        threshold: Jaccard similarity from which two are alike.

    Returns:
        For each such hold-out row the most similar other row.
    """
    own = [asked(row) for row in (*held, *seen)]
    affixes = common_affixes(own)
    texts = [normalise(affixes.own(text)) or normalise(text) for text in own]
    ours, theirs = texts[: len(held)], texts[len(held) :]
    best: dict[int, tuple[float, int]] = {}
    for grams, fits in ((char_grams, _is_short), (word_grams, _is_long)):
        a = [at for at, text in enumerate(ours) if fits(text)]
        b = [at for at, text in enumerate(theirs) if fits(text)]
        pairs = _alike([ours[at] for at in a], [theirs[at] for at in b], grams, threshold)
        for row, col, similarity in pairs:
            found = (similarity, b[col])
            best[a[row]] = max(best.get(a[row], found), found)
    return [
        Leak(held[row].row_id, seen[col].row_id, seen[col].split, round(similarity, 4))
        for row, (similarity, col) in sorted(best.items())
    ]


def _is_short(text: str) -> bool:
    return len(text) <= SHORT


def _is_long(text: str) -> bool:
    return len(text) > LONG


def char_grams(text: str) -> set[str]:
    """The set of character 5-grams of a text."""
    return {text[at : at + CHARS] for at in range(max(1, len(text) - CHARS + 1))}


def word_grams(text: str) -> set[str]:
    """The set of word 3-grams of a text."""
    words = text.split()
    return {" ".join(words[at : at + WORDS]) for at in range(max(1, len(words) - WORDS + 1))}


def _alike(
    ours: Sequence[str],
    theirs: Sequence[str],
    grams: Callable[[str], set[str]],
    threshold: float,
) -> Iterator[tuple[int, int, float]]:
    """Pairs of texts at or above the threshold: numbers on both sides, similarity."""
    import numpy as np

    if not ours or not theirs:
        return
    vocabulary: dict[str, int] = {}
    a = _incidence([grams(text) for text in ours], vocabulary)
    b = _incidence([grams(text) for text in theirs], vocabulary)
    a.resize((len(ours), len(vocabulary)))
    sizes_a, sizes_b = (np.asarray(matrix.sum(axis=1)).ravel() for matrix in (a, b))
    for start in range(0, len(ours), BLOCK):
        shared = (a[start : start + BLOCK] @ b.T).tocoo()
        union = sizes_a[start + shared.row] + sizes_b[shared.col] - shared.data
        similarity = shared.data / union
        for at in np.flatnonzero(similarity >= threshold):
            yield start + int(shared.row[at]), int(shared.col[at]), float(similarity[at])


def _incidence(sets: Sequence[set[str]], vocabulary: dict[str, int]) -> Any:
    """Sparse 0/1 matrix, texts × shingles; `vocabulary` grows as shingles are met."""
    import numpy as np
    from scipy.sparse import csr_matrix

    columns: list[int] = []
    ends = [0]
    for one in sets:
        columns.extend(vocabulary.setdefault(gram, len(vocabulary)) for gram in one)
        ends.append(len(columns))
    ones = np.ones(len(columns), dtype=np.int32)
    return csr_matrix((ones, columns, ends), shape=(len(sets), len(vocabulary)))
