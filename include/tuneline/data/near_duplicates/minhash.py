"""Find near-duplicates by MinHash and LSH, each candidate verified by its exact Jaccard similarity.

MinHash: Broder, "On the resemblance and containment of documents" (1997); its signatures:
Dahlgaard, Knudsen and Thorup, "Fast similarity sketching" (2017). Functions are pure and work on
batches, so that a distributed engine can map them. Of each text only the band keys and a bitmap are
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneline.data.near_duplicates.shingles import (
    HASH_BITS,
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
    normalise,
    shingle_chars,
    shingle_words,
    text_of,
    words_of,
)
from tuneline.machine.cores import in_threads

Signatures = NDArray[np.uint32]
Shingle = Callable[[Sequence[str]], Shingled]

# Values of a signature, and rounds in which shingles fall into bins.
BINS, ROUNDS = 128, 5
_BIN_BITS = (BINS - 1).bit_length()
_BIN_SHIFT = np.uint32(32 - _BIN_BITS)
_EMPTY = np.uint32(0xFFFFFFFF)
# Of the permutations, and of those of a second search.
SEED, SECOND_SEED = 1, 2
_HASH = np.uint64((1 << HASH_BITS) - 1)
# Cells that are filled at once.
_FILLED = 1 << 12
# Up to this many rows, more bands cost nothing and miss nothing.
FEW_ROWS = 5_000
BANDS_FEW, BANDS_MANY = (25, 5), (21, 6)
# If more rows than this have the same band, each is compared with its neighbours only.
MAX_BUCKET = 64
# Pairs verified at once.
PAIRS = 1 << 12
# Bits of a bitmap. Two sets of some two hundred grams that share half of them differ in over a
# hundred of these bits; near-duplicates differ in up to fifty.
BITS = 512
# 64-bit words of a bitmap that are compared first: nearly all pairs differ too much in these.
_FIRST_WORDS = 2
# Pairs whose bitmaps are compared at once.
CHECKED = 1 << 16


def signatures(shingled: Shingled, seed: int = SEED) -> Signatures:
    """Sketch sets of shingles, so that two agree in each value with their Jaccard similarity.

    In each round every shingle falls into one of the bins. A bin takes the smallest value of the
    first round that put a shingle into it. What is left empty after `ROUNDS` takes the smallest
    value of all shingles by another hash.

    Returns:
        Shape (texts, 128); the values of a text depend on no other text.
    """
    counts = np.diff(shingled.offsets)
    cells = np.full(len(shingled) * BINS, _EMPTY)
    first = np.repeat(np.arange(0, len(cells), BINS), counts)
    hashes = shingled.hashes.astype(np.uint32)
    for number, factor in enumerate(_factors(seed)[:ROUNDS]):
        # The upper bits name the bin. In one bin they are equal, so the values need not lose them.
        values = hashes * factor
        cell = first + (values >> _BIN_SHIFT)
        if number:
            free = np.flatnonzero(cells[cell] == _EMPTY)
            cell, values = cell[free], values[free]
        np.minimum.at(cells, cell, values)
        unfinished = (cells == _EMPTY).reshape(-1, BINS).any(axis=1)
        # To sort the others out costs as much as to look at them once more.
        if 2 * np.count_nonzero(unfinished) < len(unfinished):
            left = np.flatnonzero(unfinished[first >> _BIN_BITS])
            hashes, first = hashes[left], first[left]
    _fill(cells, shingled, counts, seed)
    return cells.reshape(-1, BINS)


def _fill(cells: NDArray[np.uint32], shingled: Shingled, counts: Indices, seed: int) -> None:
    """Give every empty cell the smallest value of the hash that belongs to its bin."""
    empty = np.flatnonzero(cells == _EMPTY)
    text, number = np.divmod(empty, BINS)
    for start in range(0, len(empty), _FILLED):
        part = slice(start, start + _FILLED)
        times = counts[text[part]]
        ends = np.cumsum(times)
        skipped = shingled.offsets[text[part]] - (ends - times)
        at = np.arange(ends[-1]) + np.repeat(skipped, times)
        factors = np.repeat(_factors(seed)[ROUNDS + number[part]], times)
        values = shingled.hashes[at].astype(np.uint32) * factors
        cells[empty[part]] = np.minimum.reduceat(values, ends - times)


@cache
def _factors(seed: int) -> NDArray[np.uint32]:
    """Return the odd factors that spread hashes anew, one of each round and of each bin."""
    drawn = np.random.default_rng(seed).integers(1 << 31, size=ROUNDS + BINS, dtype=np.uint32)
    return drawn << np.uint32(1) | np.uint32(1)


def bands_for(rows: int, threshold: float) -> tuple[int, int]:
    """Return the number of bands and of rows in a band for a Jaccard threshold.

    Candidates are verified afterwards, so the bands are chosen for recall: of the pairs exactly at
    the threshold at most one in a hundred is missed. The choice of datasketch for 0.8 loses 7 % of
    the true pairs.
    """
    if rows <= FEW_ROWS:
        return BANDS_FEW
    if threshold >= 0.8:
        return BANDS_MANY
    widths = (r for r in range(BANDS_MANY[1], 0, -1) if (1 - threshold**r) ** (BINS // r) <= 0.01)
    width = next(widths, 1)
    return BINS // width, width


def band_keys(sigs: Signatures, bands: tuple[int, int]) -> Hashes:
    """Return one hash for each band, shape (bands, rows), of signatures, shape (rows, 128)."""
    count, width = bands
    used = sigs[:, : count * width].reshape(len(sigs), count, width)
    keys = np.zeros((len(sigs), count), dtype=np.uint64)
    for column in range(width):
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys += used[:, :, column]
    return np.ascontiguousarray(mix(keys).T)


def candidates(keys: Hashes) -> NDArray[np.int64]:
    """Return the pairs of rows that agree in a band: shape (pairs, 2), smaller first, in order."""
    rows = keys.shape[1]
    bits = np.uint64(max(1, (rows - 1).bit_length()))
    low = np.uint64((1 << int(bits)) - 1)
    numbers = np.arange(rows, dtype=np.uint64)
    found: list[Hashes] = []
    for band in keys:
        # The row's number takes the low bits, so that sorting values sorts rows by key.
        ranked = np.sort((band & ~low) | numbers)
        own = ranked >> bits
        for distance in range(1, min(MAX_BUCKET, rows)):
            same = np.flatnonzero(own[distance:] == own[:-distance])
            if not len(same):
                break
            found.append(((ranked[same] & low) << bits) | (ranked[same + distance] & low))
    if not found:
        return np.empty((0, 2), dtype=np.int64)
    # A sort is ten times as fast as the hash table of `np.unique`.
    pairs = np.sort(np.concatenate(found))
    pairs = pairs[np.concatenate(([True], pairs[1:] != pairs[:-1]))]
    return np.stack((pairs >> bits, pairs & low), axis=1).astype(np.int64)


def cross_candidates(left: Hashes, right: Hashes) -> Indices:
    """Return the pairs of a left and a right row that agree in a band: shape (pairs, 2)."""
    rows = max(1, right.shape[1])
    found = [np.empty(0, dtype=np.int64)]
    for ours, theirs in zip(left, right, strict=True):
        order = np.argsort(theirs, kind="stable")
        ranked = theirs[order]
        first = np.searchsorted(ranked, ours, side="left")
        times = np.minimum(np.searchsorted(ranked, ours, side="right") - first, MAX_BUCKET)
        run = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        other = order[np.repeat(first, times) + run]
        found.append(np.repeat(np.arange(len(ours)), times) * rows + other)
    return np.stack(np.divmod(np.unique(np.concatenate(found)), rows), axis=1)


def jaccard(texts: Sequence[str], pairs: Indices, shingle: Shingle) -> NDArray[np.float64]:
    """Return the exact Jaccard similarities of pairs of texts, whose shape is (pairs, 2)."""
    among, numbers = np.unique(pairs, return_inverse=True)
    sets = _sets([texts[i] for i in among.tolist()], shingle)
    sizes = np.diff(sets.indptr)
    i, j = numbers.reshape(pairs.shape).T
    shared = np.diff(sets[i].multiply(sets[j]).indptr)
    return np.asarray(shared / (sizes[i] + sizes[j] - shared))


def similarities(texts: Sequence[str], pairs: Indices) -> NDArray[np.float64]:
    """Return the Jaccard similarities of pairs of texts, the greater of both kinds."""
    lengths = np.array([len(normalise(text)) for text in texts], dtype=np.int64)
    found = np.zeros(len(pairs))
    for fits, shingle in ((lengths <= SHORT, shingle_chars), (lengths > LONG, shingle_words)):
        at = np.flatnonzero(fits[pairs].all(axis=1))
        for part in np.split(at, range(PAIRS, len(at), PAIRS)):
            if len(part):
                found[part] = np.maximum(found[part], jaccard(texts, pairs[part], shingle))
    return found


def _sets(texts: Sequence[str], shingle: Shingle) -> Any:
    """Return a sparse matrix with a row for each text, and a column for each possible shingle."""
    from scipy.sparse import csr_array

    hashes: list[Indices] = []
    sizes: list[Indices] = [np.zeros(1, dtype=np.int64)]
    for batch in batches(texts):
        keys = distinct(shingle(texts[batch]))
        hashes.append((keys & _HASH).astype(np.int64))
        sizes.append(np.bincount(text_of(keys), minlength=batch.stop - batch.start))
    members = np.concatenate(hashes)
    ends = np.cumsum(np.concatenate(sizes))
    shape = (len(texts), 1 << HASH_BITS)
    return csr_array((np.ones(len(members), dtype=bool), members, ends), shape=shape)


def marks(shingled: Shingled) -> Hashes:
    """Return bitmaps, shape (texts, `BITS` / 64): bit b is set for a hash that ends in b."""
    first = np.arange(len(shingled), dtype=np.int64) * BITS
    cells = (shingled.hashes & np.uint64(BITS - 1)).astype(np.int64)
    cells += np.repeat(first, np.diff(shingled.offsets))
    present = np.zeros(len(shingled) * BITS, dtype=np.uint8)
    present[cells] = 1
    return np.packbits(present).view(np.uint64).reshape(-1, BITS // 64)


def alike_by_marks(bits: Hashes, most: Indices, pairs: Indices, threshold: float) -> Indices:
    """Return the positions of the pairs that may reach a Jaccard similarity, by their `marks`.

    A similarity of t bounds the symmetric difference by `(1 - t) / (1 + t)` of the sum of the sizes
    (at `most`), and each differing bit is of a member of it (Sandes et al., "Bitmap filter:
    speeding up exact set similarity joins with bitwise operations", 2020). No pair that reaches t
    is ruled out.
    """
    i, j = pairs.T
    spare = (most[i] + most[j]) * ((1 - threshold) / (1 + threshold)) + 1e-9
    left_over = np.arange(len(pairs))
    for words in (slice(0, _FIRST_WORDS), slice(_FIRST_WORDS, None)):
        x, y = (bits[side[left_over], words] for side in (i, j))
        spare = spare - np.bitwise_count(x ^ y).sum(axis=1)
        left_over, spare = left_over[spare >= 0], spare[spare >= 0]
    return left_over


def near_pairs(texts: Sequence[str], threshold: float) -> list[tuple[int, int, float]]:
    """Find near-duplicates: `(i, j, similarity)`, i < j, in order, the greater of both kinds."""
    return _near(texts, None, threshold, SEED)


def cross_pairs(
    left: Sequence[str], right: Sequence[str], threshold: float
) -> list[tuple[int, int, float]]:
    """Find near-duplicates of left texts among right ones, by other permutations."""
    pairs = _near([*left, *right], len(left), threshold, SECOND_SEED)
    return [(i, j - len(left), similarity) for i, j, similarity in pairs]


def nearest(
    left: Sequence[str], right: Sequence[str], threshold: float
) -> dict[int, tuple[int, float]]:
    """Return, for each left text near to a right one, the nearest of these and the similarity."""
    best: dict[int, tuple[int, float]] = {}
    for i, j, similarity in cross_pairs(left, right, threshold):
        if i not in best or similarity > best[i][1]:
            best[i] = (j, similarity)
    return best


def _near(
    texts: Sequence[str], first: int | None, threshold: float, seed: int
) -> list[tuple[int, int, float]]:
    """Find near-duplicates among all texts, or across the first ones and the others."""
    pairs = [np.empty((0, 2), dtype=np.int64)]
    similarities = [np.empty(0)]
    kinds: tuple[Shingle, Shingle] = (shingle_chars, shingle_words)
    for indexed, shingle in zip(_indexed(texts, threshold, seed), kinds, strict=True):
        for part, values in _verified(texts, _possible(indexed, first, threshold), shingle):
            near = np.flatnonzero(values >= threshold)
            pairs.append(part[near])
            similarities.append(values[near])
    found, values = np.concatenate(pairs), np.concatenate(similarities)
    # Of a pair that both kinds find, the greater similarity comes first.
    order = np.lexsort((-values, found[:, 1], found[:, 0]))
    found, values = found[order], values[order]
    fresh = np.ones(len(found), dtype=bool)
    fresh[1:] = (found[1:] != found[:-1]).any(axis=1)
    i, j = found[fresh].T.tolist()
    return list(zip(i, j, values[fresh].tolist(), strict=True))


def _verified(
    texts: Sequence[str], pairs: Indices, shingle: Shingle
) -> Iterator[tuple[Indices, NDArray[np.float64]]]:
    """Yield all pairs in parts, with their exact similarities."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(pairs):
        return
    # Pairs of the same texts come one after the other, so that a text is split only once.
    graph = coo_array((np.ones(len(pairs), dtype=bool), pairs.T), (len(texts), len(texts)))
    group = connected_components(graph, directed=False)[1]
    pairs = pairs[np.argsort(group[pairs[:, 0]], kind="stable")]
    parts = [pairs[start : start + PAIRS] for start in range(0, len(pairs), PAIRS)]
    values = in_threads(lambda part: jaccard(texts, part, shingle), parts)
    yield from zip(parts, values, strict=True)


@dataclass(frozen=True)
class _Indexed:
    """What is kept of the texts that are compared by one kind of shingle."""

    members: Indices
    keys: Hashes
    bits: Hashes
    sizes: Indices


def _possible(indexed: _Indexed, first: int | None, threshold: float) -> Indices:
    """Return the pairs that agree in a band and that their bitmaps don't rule out."""
    if first is None:
        pairs = candidates(indexed.keys)
    else:
        at = int(np.searchsorted(indexed.members, first))
        pairs = cross_candidates(indexed.keys[:, :at], indexed.keys[:, at:])
        pairs[:, 1] += at
    left_over = [
        start
        + alike_by_marks(indexed.bits, indexed.sizes, pairs[start : start + CHECKED], threshold)
        for start in range(0, len(pairs), CHECKED)
    ]
    return indexed.members[pairs[np.concatenate([np.empty(0, dtype=np.int64), *left_over])]]


def _indexed(texts: Sequence[str], threshold: float, seed: int) -> Iterator[_Indexed]:
    """Index short texts, then long ones."""
    bands = bands_for(len(texts), threshold)

    def index(batch: slice) -> tuple[_Indexed, _Indexed]:
        words = words_of(texts[batch])
        short, long = words.lengths <= SHORT, words.lengths > LONG
        return (
            _index(chars_of(words.chosen(short)), np.flatnonzero(short) + batch.start, bands, seed),
            _index(grams_of(words.chosen(long)), np.flatnonzero(long) + batch.start, bands, seed),
        )

    _factors(seed)
    for parts in zip(index(slice(0, 0)), *in_threads(index, batches(texts)), strict=True):
        yield _Indexed(
            members=np.concatenate([part.members for part in parts]),
            keys=np.concatenate([part.keys for part in parts], axis=1),
            bits=np.concatenate([part.bits for part in parts]),
            sizes=np.concatenate([part.sizes for part in parts]),
        )


def _index(shingled: Shingled, members: Indices, bands: tuple[int, int], seed: int) -> _Indexed:
    keys = band_keys(signatures(shingled, seed), bands)
    return _Indexed(members, keys, marks(shingled), np.diff(shingled.offsets))
