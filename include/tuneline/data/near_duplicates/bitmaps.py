"""Rule out pairs of dissimilar sets by a few bits of each, without comparing their members.

This is the bitmap filter of Sandes et al. ("Bitmap filter: speeding up exact set similarity joins
with bitwise operations", 2020). It never rules out a pair that reaches the threshold.
"""

from __future__ import annotations

import numpy as np

from tuneline.data.near_duplicates.shingles import Hashes, Indices

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
    spare = (a + b) * ((1 - threshold) / (1 + threshold)) + 1e-9
    left_over = np.flatnonzero(np.abs(a - b) <= spare)
    spare = spare[left_over]
    for words in (slice(0, _FIRST_WORDS), slice(_FIRST_WORDS, None)):
        x, y = left[0][i[left_over], words], right[0][j[left_over], words]
        spare -= np.bitwise_count(x ^ y).sum(axis=1)
        left_over, spare = left_over[spare >= 0], spare[spare >= 0]
    return left_over
