"""Find near-duplicates by MinHash and LSH, each candidate verified by its exact Jaccard similarity.

MinHash: Broder, "On the resemblance and containment of documents" (1997). The signatures are those
of datasketch 2 (`scheme="affine32"`), computed for a whole batch with NumPy and bit by bit the same
as `MinHash.update_batch` over the same 32-bit hashes. Functions are pure and work on batches, so
that a distributed engine can map them. Of each text only the band keys are kept; the shingles of
candidates are made a second time when they are verified. The witness of this search, which misses
few pairs but not none, is `exact_join`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tuneline.data.near_duplicates.bitmaps import alike, bitmaps
from tuneline.data.near_duplicates.shingles import (
    BATCH_TEXTS,
    LONG,
    SHORT,
    Hashes,
    Indices,
    Shingled,
    batches,
    chars_of,
    distinct,
    grams_of,
    mix,
    shingle_chars,
    shingle_words,
    text_of,
    words_of,
)
from tuneline.machine.threads import in_threads

Signatures = NDArray[np.uint32]

NUM_PERM = 128
SEED = 1
# Up to this many rows, more bands cost nothing and miss nothing.
FEW_ROWS = 5_000
BANDS_FEW, BANDS_MANY = (25, 5), (21, 6)
# If more rows than this have the same band, each is compared with its neighbours only.
MAX_BUCKET = 64
# Pairs verified at once.
PAIRS = BATCH_TEXTS
# Pairs whose bitmaps are compared at once.
CHECKED = 1 << 16


def signatures(shingled: Shingled) -> Signatures:
    """Compute MinHash signatures.

    Args:
        shingled: at least one shingle of every text; repeats change nothing.

    Returns:
        Shape (128, texts); column i is `MinHash(num_perm=128, scheme="affine32").hashvalues` after
        `update_batch` with the lower 32 bits of the hashes of text i.
    """
    a, b = _permutations()
    hashed = _fmix32(shingled.hashes.astype(np.uint32))
    permuted = np.empty_like(hashed)
    result = np.empty((NUM_PERM, len(shingled)), dtype=np.uint32)
    for k in range(NUM_PERM):
        np.multiply(hashed, a[k], out=permuted)
        np.add(permuted, b[k], out=permuted)
        np.minimum.reduceat(permuted, shingled.offsets[:-1], out=result[k])
    return result


@cache
def _permutations() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    from datasketch import MinHash

    a, b = MinHash(num_perm=NUM_PERM, seed=SEED, scheme="affine32").permutations
    return a, b


def _fmix32(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Apply MurmurHash3's 32-bit finaliser, with which datasketch mixes hashes first."""
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    values = (values ^ (values >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))


def bands_for(rows: int, threshold: float) -> tuple[int, int]:
    """Return the number of bands and of rows in a band for a Jaccard threshold.

    Candidates are verified afterwards, so the bands are chosen for recall: of the pairs exactly at
    the threshold at most one in a hundred is missed. The choice of datasketch for 0.8 loses 7 % of
    the true pairs.
    """
    if rows <= FEW_ROWS:
        bands = BANDS_FEW
    elif threshold >= 0.8:
        bands = BANDS_MANY
    else:
        widths = (r for r in range(BANDS_MANY[1], 0, -1) if _found(NUM_PERM // r, r, threshold))
        width = next(widths, 1)
        bands = (NUM_PERM // width, width)
    return bands


def _found(bands: int, width: int, jaccard: float) -> bool:
    return 1 - (1 - jaccard**width) ** bands >= 0.99


def band_keys(sigs: Signatures, bands: tuple[int, int]) -> Hashes:
    """Return one hash for every band of every row.

    Args:
        sigs: signatures, shape (128, rows).
        bands: number of bands and their width.

    Returns:
        Shape (bands, rows).
    """
    count, width = bands
    keys = np.zeros((count, sigs.shape[1]), dtype=np.uint64)
    for column in range(width):
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + sigs[column : count * width : width]
    return mix(keys)


def candidates(keys: Hashes) -> NDArray[np.int64]:
    """Return the pairs of rows that agree in a whole band.

    Args:
        keys: hashes from `band_keys`, shape (bands, rows).

    Returns:
        Shape (pairs, 2), each pair once, the smaller row first, in order.
    """
    rows = keys.shape[1]
    bits = np.uint64(max(1, (rows - 1).bit_length()))
    low = np.uint64((1 << int(bits)) - 1)
    numbers = np.arange(rows, dtype=np.uint64)
    found: list[Hashes] = []
    for band in keys:
        # The row's number takes the low bits, so that sorting values sorts rows by key.
        ranked = np.sort((band & ~low) | numbers)
        found.extend((a << bits) | b for a, b in _equal_keys(ranked, bits, low))
    if not found:
        return np.empty((0, 2), dtype=np.int64)
    pairs = np.unique(np.concatenate(found))
    return np.stack((pairs >> bits, pairs & low), axis=1).astype(np.int64)


def _equal_keys(ranked: Hashes, bits: np.uint64, low: np.uint64) -> Iterator[tuple[Hashes, Hashes]]:
    """Yield the pairs of rows with equal keys, the smaller row first."""
    keys = ranked >> bits
    for distance in range(1, min(MAX_BUCKET, len(ranked))):
        same = np.flatnonzero(keys[distance:] == keys[:-distance])
        if not len(same):
            return
        yield ranked[same] & low, ranked[same + distance] & low


def jaccard(a: Shingled, b: Shingled) -> NDArray[np.float64]:
    """Compute the exact Jaccard similarity of the sets of shingles of pairs of texts.

    Args:
        a: shingles of the first text of each of at most `PAIRS` pairs.
        b: shingles of the second text of each pair.

    Returns:
        Shape (pairs,).
    """
    left, right = distinct(a), distinct(b)
    both = np.sort(np.concatenate((left, right)))
    shared = _count(both[1:][both[1:] == both[:-1]], len(a))
    return shared / (_count(left, len(a)) + _count(right, len(a)) - shared)


def _count(keys: Hashes, texts: int) -> NDArray[np.int64]:
    return np.bincount(text_of(keys), minlength=texts)


def near_pairs(texts: Sequence[str], threshold: float) -> list[tuple[int, int, float]]:
    """Find the pairs of texts that are near-duplicates.

    Args:
        texts: texts, normalised or not; they are compared as `normalise` returns them.
        threshold: Jaccard similarity from which a pair counts.

    Returns:
        `(i, j, similarity)` with i < j, in order; the greater similarity if both kinds of shingles
        apply.
    """
    lengths, short_keys, long_keys = _keys(texts, threshold)
    best: dict[tuple[int, int], float] = {}
    for members, keys, shingle in (
        (np.flatnonzero(lengths <= SHORT), short_keys, shingle_chars),
        (np.flatnonzero(lengths > LONG), long_keys, shingle_words),
    ):
        pairs = _possible(texts, members[candidates(keys)], shingle, threshold)
        for start in range(0, len(pairs), PAIRS):
            part = pairs[start : start + PAIRS]
            left, right = ([texts[i] for i in side.tolist()] for side in part.T)
            similar = jaccard(shingle(left), shingle(right))
            for at in np.flatnonzero(similar >= threshold).tolist():
                pair = (int(part[at, 0]), int(part[at, 1]))
                best[pair] = max(float(similar[at]), best.get(pair, 0.0))
    return [(i, j, similarity) for (i, j), similarity in sorted(best.items())]


def _possible(
    texts: Sequence[str],
    pairs: Indices,
    shingle: Callable[[Sequence[str]], Shingled],
    threshold: float,
) -> Indices:
    """Return the candidates that may be near; ask only if texts have more than one on average."""
    among, numbers = np.unique(pairs, return_inverse=True)
    if len(pairs) <= len(among):
        return pairs
    chosen = [texts[i] for i in among.tolist()]
    bits: list[Hashes] = []
    sizes: list[Indices] = []
    for batch in batches(chosen):
        count = batch.stop - batch.start
        grams = distinct(shingle(chosen[batch]))
        text = text_of(grams)
        bits.append(bitmaps(grams, text, count))
        sizes.append(np.bincount(text, minlength=count))
    known = (np.concatenate(bits), np.concatenate(sizes))
    i, j = numbers.reshape(pairs.shape).T
    found = [
        start
        + alike(known, known, (i[start : start + CHECKED], j[start : start + CHECKED]), threshold)
        for start in range(0, len(pairs), CHECKED)
    ]
    return pairs[np.concatenate(found)]


def _keys(texts: Sequence[str], threshold: float) -> tuple[Indices, Hashes, Hashes]:
    """Return the normalised length of every text, and the band keys of short and of long texts."""
    bands = bands_for(len(texts), threshold)
    none = np.empty((bands[0], 0), dtype=np.uint64)

    def keys_of(batch: slice) -> tuple[Indices, Hashes, Hashes]:
        words = words_of(texts[batch])
        keys = [none, none]
        for at, (fits, shingle) in enumerate(
            ((words.lengths <= SHORT, chars_of), (words.lengths > LONG, grams_of))
        ):
            if fits.any():
                chosen = words
                if not fits.all():
                    among = np.flatnonzero(fits) + batch.start
                    chosen = words_of([texts[i] for i in among.tolist()])
                keys[at] = band_keys(signatures(shingle(chosen)), bands)
        return words.lengths, keys[0], keys[1]

    # Draw the permutations once, not in each thread.
    _permutations()
    nothing = (np.empty(0, dtype=np.int64), none, none)
    lengths, short, long = zip(nothing, *in_threads(keys_of, batches(texts)), strict=True)
    return np.concatenate(lengths), np.concatenate(short, axis=1), np.concatenate(long, axis=1)
