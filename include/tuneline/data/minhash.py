"""Near-duplicate candidates by MinHash and LSH, verified by exact Jaccard similarity.

MinHash: Broder, "On the resemblance and containment of documents" (1997). The signatures are
those of datasketch 2 (`scheme="affine32"`), computed for a whole batch with NumPy, bit by bit
the same as `MinHash.update_batch` over the same 32-bit hashes. Functions are pure and work on
batches, so that a distributed engine can map them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Signatures = NDArray[np.uint32]
Indices = NDArray[np.int64]

NUM_PERM = 128
SEED = 1
CHARS, WORDS = 5, 3
# Rows up to SHORT characters are compared by character 5-grams, rows over LONG by word 3-grams,
# those between by both: a pair with Jaccard 0.8 or more is at most a quarter apart in length, so
# it always shares one of the two.
SHORT, LONG = 400, 320
# Below this many rows more bands cost nothing and miss nothing.
FEW_ROWS = 5_000
BANDS_FEW, BANDS_MANY = (25, 5), (14, 9)
# Rows whose band is equal to more rows than this are compared with their neighbours only.
MAX_BUCKET = 64
_SIGNATURE_BATCH = 4_000

_WORD = re.compile(r"\w+")
_NOT_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Shingled:
    """Shingle hashes of texts: those of text i are `hashes[offsets[i]:offsets[i + 1]]`, sorted."""

    hashes: Hashes
    offsets: Indices

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, index: int) -> Hashes:
        """The sorted, distinct shingle hashes of one text."""
        return self.hashes[self.offsets[index] : self.offsets[index + 1]]


def normalise(text: str) -> str:
    """Lower case, every run of other than letters and digits as one space."""
    return _NOT_WORD.sub(" ", text.casefold()).strip()


def _mix(values: Hashes) -> Hashes:
    """MurmurHash3's 64-bit finaliser: a bijection that spreads its input."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def _roll(units: Hashes, lengths: Indices, width: int) -> tuple[Hashes, Indices]:
    """Hash every window of `width` units inside each text; a shorter text is one window.

    Args:
        units: the units (characters or word hashes) of all texts, one after the other.
        lengths: units of each text.

    Returns:
        One hash per window and the text that each window belongs to.
    """
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64)
    windows = np.maximum(lengths - width + 1, 1)
    owner = np.repeat(np.arange(len(lengths), dtype=np.int64), windows)
    first = np.concatenate(([0], np.cumsum(windows)[:-1])).astype(np.int64)
    position = np.arange(len(owner), dtype=np.int64) - first[owner] + starts[owner]
    limit = (starts + lengths)[owner]
    mixed = np.zeros(len(owner), dtype=np.uint64)
    # A sentinel past the end stands for the missing units of a short text.
    padded = np.concatenate((units, np.zeros(width, dtype=np.uint64)))
    for step in range(width):
        at = position + step
        unit = np.where(at < limit, padded[np.minimum(at, len(padded) - 1)], np.uint64(0))
        mixed = _mix(mixed * np.uint64(31) + unit + np.uint64(step + 1))
    return mixed, owner


def shingle_chars(texts: Sequence[str]) -> Shingled:
    """Character 5-grams of normalised texts, as 64-bit hashes."""
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    encoded = "".join(texts).encode("utf-32-le")
    units = np.frombuffer(encoded, dtype=np.uint32).astype(np.uint64) + np.uint64(1)
    return _distinct(*_roll(units, lengths, CHARS), len(texts))


def shingle_words(texts: Sequence[str]) -> Shingled:
    """Word 3-grams of normalised texts, as 64-bit hashes."""
    words = [_WORD.findall(text) for text in texts]
    lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    numbers: dict[str, int] = {}
    flat = [word for row in words for word in row]
    for word in flat:
        if word not in numbers:
            numbers[word] = _word_hash(word)
    units = np.fromiter((numbers[word] for word in flat), dtype=np.uint64, count=len(flat))
    return _distinct(*_roll(units, lengths, WORDS), len(texts))


def _word_hash(word: str) -> int:
    import hashlib

    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little") | 1


def _distinct(hashes: Hashes, owner: Indices, count: int) -> Shingled:
    """Sort the hashes of each text and drop repeats."""
    order = np.lexsort((hashes, owner))
    hashes, owner = hashes[order], owner[order]
    fresh = np.ones(len(hashes), dtype=bool)
    fresh[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
    sizes = np.bincount(owner[fresh], minlength=count)
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    return Shingled(hashes[fresh], offsets)


@cache
def _permutations() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    from datasketch import MinHash

    a, b = MinHash(num_perm=NUM_PERM, seed=SEED, scheme="affine32").permutations
    return a, b


def signatures(shingled: Shingled) -> Signatures:
    """MinHash signatures.

    Args:
        shingled: at least one shingle for every text.

    Returns:
        Shape (texts, 128); row i is `MinHash(num_perm=128, scheme="affine32").hashvalues` after
        `update_batch` with the lower 32 bits of the hashes of text i.
    """
    a, b = _permutations()
    result = np.empty((len(shingled), NUM_PERM), dtype=np.uint32)
    for start in range(0, len(shingled), _SIGNATURE_BATCH):
        offsets = shingled.offsets[start : start + _SIGNATURE_BATCH + 1]
        hashed = _fmix32(shingled.hashes[offsets[0] : offsets[-1]].astype(np.uint32))
        at = offsets[:-1] - offsets[0]
        for k in range(NUM_PERM):
            result[start : start + len(at), k] = np.minimum.reduceat(hashed * a[k] + b[k], at)
    return result


def _fmix32(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """MurmurHash3's 32-bit finaliser, with which datasketch mixes hashes first."""
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    values = (values ^ (values >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))


def bands_for(rows: int, threshold: float) -> tuple[int, int]:
    """Number of bands and rows in a band for a Jaccard threshold.

    datasketch's own choice for 0.8 loses 7 % of true pairs; candidates are verified afterwards,
    so recall is what the bands are chosen for.
    """
    if rows <= FEW_ROWS:
        bands = BANDS_FEW
    elif threshold >= 0.8:
        bands = BANDS_MANY
    else:
        # The steepest curve that still finds 99 % of pairs at the threshold.
        widths = (r for r in range(BANDS_MANY[1], 0, -1) if _found(NUM_PERM // r, r, threshold))
        width = next(widths, 1)
        bands = (NUM_PERM // width, width)
    return bands


def _found(bands: int, width: int, jaccard: float) -> bool:
    return 1 - (1 - jaccard**width) ** bands >= 0.99


def candidates(sigs: Signatures, bands: tuple[int, int]) -> NDArray[np.int64]:
    """Pairs of rows that agree in a whole band.

    Args:
        sigs: signatures, shape (rows, 128).
        bands: number of bands and width of each.

    Returns:
        Shape (pairs, 2), each pair once, the smaller row first.
    """
    count, width = bands
    found: list[NDArray[np.int64]] = []
    for band in range(count):
        part = sigs[:, band * width : (band + 1) * width].astype(np.uint64)
        key = np.zeros(len(part), dtype=np.uint64)
        for column in range(width):
            key = _mix(key * np.uint64(31) + part[:, column] + np.uint64(1))
        found.extend(_pairs_in(key))
    if not found:
        return np.empty((0, 2), dtype=np.int64)
    pairs = np.concatenate(found)
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _pairs_in(key: Hashes) -> Iterator[NDArray[np.int64]]:
    """Pairs of positions with equal keys."""
    order = np.argsort(key, kind="stable").astype(np.int64)
    ranked = key[order]
    for distance in range(1, MAX_BUCKET):
        if distance >= len(ranked):
            return
        same = np.flatnonzero(ranked[distance:] == ranked[:-distance])
        if not len(same):
            return
        yield np.stack((order[same], order[same + distance]), axis=1)


def jaccard(a: Hashes, b: Hashes) -> float:
    """Exact Jaccard similarity of two sorted arrays of distinct shingle hashes."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared) if len(a) + len(b) else 1.0


def near_pairs(texts: Sequence[str], threshold: float) -> list[tuple[int, int, float]]:
    """All pairs of texts that are near-duplicates.

    Args:
        texts: normalised texts.
        threshold: Jaccard similarity from which a pair counts.

    Returns:
        `(i, j, similarity)` with i < j, in order; the greater similarity where both kinds of
        shingles apply.
    """
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    best: dict[tuple[int, int], float] = {}
    for members, shingle in (
        (np.flatnonzero(lengths <= SHORT), shingle_chars),
        (np.flatnonzero(lengths > LONG), shingle_words),
    ):
        if len(members) < 2:
            continue
        shingled = shingle([texts[i] for i in members.tolist()])
        for i, j in candidates(signatures(shingled), bands_for(len(members), threshold)):
            similarity = jaccard(shingled.of(i), shingled.of(j))
            if similarity >= threshold:
                pair = (int(members[i]), int(members[j]))
                best[pair] = max(similarity, best.get(pair, 0.0))
    return [(i, j, similarity) for (i, j), similarity in sorted(best.items())]


class Clusters:
    """Union-find over row numbers; the root of a cluster is its smallest row."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, row: int) -> int:
        """The smallest row of a row's cluster."""
        while self._parent[row] != row:
            self._parent[row] = self._parent[self._parent[row]]
            row = self._parent[row]
        return row

    def join(self, a: int, b: int) -> None:
        """Put two rows into one cluster."""
        low, high = sorted((self.root(a), self.root(b)))
        self._parent[high] = low
