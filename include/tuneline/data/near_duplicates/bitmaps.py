"""Rule out pairs of dissimilar sets by a few bits of each, without comparing their members.

This is the bitmap filter of Sandes et al. ("Bitmap filter: speeding up exact set similarity joins
with bitwise operations", 2020). It never rules out a pair that reaches the threshold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tuneline.data.near_duplicates.shingles import Hashes, Indices, Shingled

# Bits of a bitmap. Two sets of some two hundred grams that share half of them differ in over a
# hundred of these bits; near-duplicates differ in up to fifty.
BITS = 512
# 64-bit words of a bitmap that are compared first: nearly all pairs differ too much in these.
_FIRST_WORDS = 2


def bitmaps(hashes: Hashes, text: Indices, texts: int) -> Hashes:
    """Return the bitmap of every text of a batch.

    Args:
        hashes: members of the sets, each once in its text.
        text: number of the text of each hash.
        texts: number of texts.

    Returns:
        Shape (texts, `BITS` / 64): bit b is set if the last bits of an odd number of the text's
        hashes are b.
    """
    cells = text * BITS + (hashes & np.uint64(BITS - 1)).astype(np.int64)
    odd = np.bincount(cells, minlength=texts * BITS).astype(np.uint8) & 1
    return np.packbits(odd).view(np.uint64).reshape(texts, BITS // 64)


def alike(
    left: tuple[Hashes, Indices],
    right: tuple[Hashes, Indices],
    pairs: tuple[Indices, Indices],
    threshold: float,
) -> Indices:
    """Return the pairs that may reach a Jaccard similarity, by their sizes and bitmaps.

    Sets with a similarity of at least t have a symmetric difference of at most
    `(1 - t) / (1 + t)` of the sum of their sizes, and each differing bit stands for a member of it.

    Args:
        left: bitmaps and set sizes of the texts of one side.
        right: bitmaps and set sizes of the texts of the other side.
        pairs: numbers of the left and of the right text of each pair.
        threshold: the Jaccard similarity.

    Returns:
        Positions in `pairs` of those that may reach it, in order.
    """
    i, j = pairs
    a, b = left[1][i], right[1][j]
    spare = _spare(a + b, threshold)
    left_over = np.flatnonzero(np.abs(a - b) <= spare)
    near = _within((left[0], right[0]), (i[left_over], j[left_over]), spare[left_over])
    return left_over[near]


def marks(shingled: Shingled) -> Hashes:
    """Return the bitmap of every text of a batch, without a look for repeated shingles.

    Bits of small sets tell as much as those of `bitmaps`; of sets larger than a bitmap nearly all
    are set.

    Returns:
        Shape (texts, `BITS` / 64): bit b is set if the last bits of one of the text's hashes are b.
    """
    first = np.arange(len(shingled), dtype=np.int64) * BITS
    cells = (shingled.hashes & np.uint64(BITS - 1)).astype(np.int64)
    cells += np.repeat(first, np.diff(shingled.offsets))
    present = np.zeros(len(shingled) * BITS, dtype=np.uint8)
    present[cells] = 1
    return np.packbits(present).view(np.uint64).reshape(-1, BITS // 64)


def alike_by_marks(bits: Hashes, most: Indices, pairs: Indices, threshold: float) -> Indices:
    """Return the pairs that may reach a Jaccard similarity, by their `marks`.

    Args:
        bits: the marks of all texts.
        most: most members that the set of each text can have.
        pairs: numbers of both texts of each pair, shape (pairs, 2).
        threshold: the Jaccard similarity.

    Returns:
        Positions in `pairs` of those that may reach it, in order.
    """
    i, j = pairs.T
    return _within((bits, bits), (i, j), _spare(most[i] + most[j], threshold))


def _spare(sizes: Indices, threshold: float) -> NDArray[np.float64]:
    """Return the largest symmetric difference of two near sets, by the sum of their sizes."""
    return np.asarray(sizes * ((1 - threshold) / (1 + threshold)) + 1e-9)


def _within(
    bits: tuple[Hashes, Hashes], pairs: tuple[Indices, Indices], spare: NDArray[np.float64]
) -> Indices:
    """Return the positions of the pairs whose bitmaps differ in no more bits than `spare`."""
    left_over = np.arange(len(spare))
    for words in (slice(0, _FIRST_WORDS), slice(_FIRST_WORDS, None)):
        x, y = (side[at[left_over], words] for side, at in zip(bits, pairs, strict=True))
        spare = spare - np.bitwise_count(x ^ y).sum(axis=1)
        left_over, spare = left_over[spare >= 0], spare[spare >= 0]
    return left_over
