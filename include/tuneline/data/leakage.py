"""An exact look for near-duplicates across splits.

It shares shingles with the MinHash search, but neither signatures nor bands: candidates come from
the prefix filter of Chaudhuri et al. ("A primitive operator for similarity joins", 2006) and the
bitmap filter of Sandes et al. ("Bitmap filter: speeding up exact set similarity joins with bitwise
operations", 2020), which keep every pair at or above the threshold, and each pair that is left is
judged by its sets of n-gram strings. Both filters run on arrays, so that a hundred thousand rows
take seconds, even where they share whole sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tuneline.data.minhash import PAIRS, distinct, jaccard
from tuneline.data.shingles import (
    CHARS,
    LONG,
    SHORT,
    WORDS,
    Hashes,
    Indices,
    Shingled,
    batches,
    shingle_chars,
    shingle_words,
)

# Hashes are counted in a table of this many cells: rare and frequent is all that matters.
_CELLS = 1 << 20
# A token is a gram's count and HASH_BITS bits of its hash; sorted, the rarest come first.
_COUNT_BITS, _HASH_BITS = 16, 36
_TOKEN = np.uint64((1 << (_COUNT_BITS + _HASH_BITS)) - 1)
# Of their rarest grams two near texts must share so many. With one alone, texts that have a
# word in common would be compared.
SHARED = 8
# Grams in common that are held at once, of all pairs.
_HELD_MATCHES = 1 << 22
# Bits of a text's bitmap. Sets of some two hundred grams that share half of them differ in over a
# hundred bits of so many; near ones may differ in fifty.
_BITS = 512
# Pairs whose bitmaps are compared at once.
_COMPARED = 1 << 16


def char_grams(text: str) -> frozenset[str]:
    """The set of character 5-grams of a text, the text itself if it is shorter."""
    return frozenset(text[i : i + CHARS] for i in range(max(1, len(text) - CHARS + 1)))


def word_grams(text: str) -> frozenset[str]:
    """The set of word 3-grams of a text, the text itself if it is shorter."""
    words = text.split()
    return frozenset(" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1)))


@dataclass(frozen=True)
class _Kind:
    """One of the two ways in which texts are compared."""

    grams: Callable[[str], frozenset[str]]
    shingle: Callable[[Sequence[str]], Shingled]
    fits: Callable[[str], bool]


_KINDS = (
    _Kind(char_grams, shingle_chars, lambda text: len(text) <= SHORT),
    _Kind(word_grams, shingle_words, lambda text: len(text) > LONG),
)


def cross_similarities(
    left: Sequence[str], right: Sequence[str], threshold: float
) -> dict[int, tuple[int, float]]:
    """Texts on the left that are near to a text on the right.

    Args:
        left: normalised texts.
        right: normalised texts.
        threshold: Jaccard similarity from which two texts are near.

    Returns:
        For each left text that is near to any right one: that right text's number and the
        similarity, the greatest there is.
    """
    found: dict[int, tuple[int, float]] = {}
    for kind in _KINDS:
        a, b = ([i for i, text in enumerate(side) if kind.fits(text)] for side in (left, right))
        near = _near([left[i] for i in a], [right[j] for j in b], kind, threshold)
        for i, j, similarity in near:
            if a[i] not in found or similarity > found[a[i]][1]:
                found[a[i]] = (b[j], similarity)
    return found


def _near(
    left: Sequence[str], right: Sequence[str], kind: _Kind, threshold: float
) -> Iterator[tuple[int, int, float]]:
    """Pairs at or above the threshold, in order, each with its similarity."""
    if not left or not right:
        return
    pairs = _candidates(left, right, kind.shingle, threshold)
    for start in range(0, len(pairs), PAIRS):
        i, j = (side.tolist() for side in pairs[start : start + PAIRS].T)
        likely = jaccard(kind.shingle([left[n] for n in i]), kind.shingle([right[n] for n in j]))
        # Hashes may fall together, if rarely; the strings themselves decide.
        for at in np.flatnonzero(likely > threshold - 0.01).tolist():
            x, y = kind.grams(left[i[at]]), kind.grams(right[j[at]])
            similarity = len(x & y) / len(x | y)
            if similarity >= threshold:
                yield i[at], j[at], similarity


def _candidates(
    left: Sequence[str],
    right: Sequence[str],
    shingle: Callable[[Sequence[str]], Shingled],
    threshold: float,
) -> Indices:
    """Pairs that share enough of their rarest grams: sets this similar cannot differ in most.

    Returns:
        Shape (pairs, 2), in order, each pair once.
    """
    counts = np.zeros(_CELLS, dtype=np.int64)
    for side in (left, right):
        for batch in batches(side):
            counts += np.bincount(_cell(distinct(shingle(side[batch]))), minlength=_CELLS)
    held = _rarest(right, shingle, counts, threshold)
    found: list[Indices] = [np.empty((0, 2), dtype=np.int64)]
    for batch in batches(left):
        rarest = _rarest(left[batch], shingle, counts, threshold)
        pairs = _meeting(rarest, held)
        pairs = pairs[_can_be_near(pairs, rarest, held, threshold)]
        pairs[:, 0] += batch.start
        found.append(pairs)
    return np.concatenate(found)


def _can_be_near(
    pairs: Indices, left: _Rarest, right: _Rarest, threshold: float
) -> NDArray[np.bool_]:
    """Which pairs may reach the threshold, as far as sizes and bitmaps can tell.

    Sets with a Jaccard similarity of at least t have a symmetric difference of at most
    `(1 - t) / (1 + t)` of their sizes' sum; every bit that differs stands for one gram of it, or
    more. Unequal sizes are a difference too.
    """
    possible = np.empty(len(pairs), dtype=bool)
    for start in range(0, len(pairs), _COMPARED):
        i, j = pairs[start : start + _COMPARED].T
        most = (left.sizes[i] + right.sizes[j]) * ((1 - threshold) / (1 + threshold)) + 1e-9
        differing = np.bitwise_count(left.bitmaps[i] ^ right.bitmaps[j]).sum(axis=1)
        least = np.maximum(np.abs(left.sizes[i] - right.sizes[j]), differing)
        possible[start : start + _COMPARED] = least <= most
    return possible


def _cell(keys: Hashes) -> NDArray[np.int64]:
    return (keys & np.uint64(_CELLS - 1)).astype(np.int64)


@dataclass(frozen=True)
class _Rarest:
    """The rarest grams of texts.

    Attributes:
        tokens: in ascending order.
        texts: number of the text of each.
        shared: for every text how many of them a near one has too, at least.
        sizes: number of all grams of every text.
        bitmaps: shape (texts, `_BITS` / 64): bit b of a text's tells whether an odd number of its
            grams have a hash that ends in b.
    """

    tokens: Hashes
    texts: Hashes
    shared: Indices
    sizes: Indices
    bitmaps: Hashes

    def halves(self) -> Iterator[_Rarest]:
        """The same of the first and of the second half of the texts."""
        middle = (self.texts.min() + self.texts.max()) // np.uint64(2)
        for part in (self.texts <= middle, self.texts > middle):
            yield replace(self, tokens=self.tokens[part], texts=self.texts[part])


def _rarest(
    texts: Sequence[str],
    shingle: Callable[[Sequence[str]], Shingled],
    counts: NDArray[np.int64],
    threshold: float,
) -> _Rarest:
    """The rarest grams of every text, as many as make near texts share `SHARED` of them.

    Of sets with an overlap of at least o, the first `|A| - o + s` and `|B| - o + s` members share
    s, whatever the order is.
    """
    tokens: list[Hashes] = [np.empty(0, dtype=np.uint64)]
    owners: list[Hashes] = [np.empty(0, dtype=np.uint64)]
    needed: list[Indices] = [np.empty(0, dtype=np.int64)]
    size_of: list[Indices] = [np.empty(0, dtype=np.int64)]
    bitmaps: list[Hashes] = [np.empty((0, _BITS // 64), dtype=np.uint64)]
    text_shift = np.uint64(_COUNT_BITS + _HASH_BITS)
    for batch in batches(texts):
        keys = distinct(shingle(texts[batch]))
        count = np.minimum(counts[_cell(keys)], (1 << _COUNT_BITS) - 1).astype(np.uint64)
        token = (count << np.uint64(_HASH_BITS)) | (keys & np.uint64((1 << _HASH_BITS) - 1))
        ranked = np.sort((keys & ~_TOKEN) | token)
        text = (ranked >> text_shift).astype(np.int64)
        sizes = np.bincount(text)
        overlap = np.ceil(threshold * sizes - 1e-9).astype(np.int64)
        shared = np.minimum(overlap, SHARED)
        place = np.arange(len(ranked)) - (np.cumsum(sizes) - sizes)[text]
        kept = place < (sizes - overlap + shared)[text]
        tokens.append(ranked[kept] & _TOKEN)
        owners.append(text[kept].astype(np.uint64) + np.uint64(batch.start))
        needed.append(shared)
        size_of.append(sizes)
        bitmaps.append(_bitmaps(keys, text, len(sizes)))
    token, owner = np.concatenate(tokens), np.concatenate(owners)
    order = np.argsort(token)
    return _Rarest(
        token[order],
        owner[order],
        np.concatenate(needed),
        np.concatenate(size_of),
        np.concatenate(bitmaps),
    )


def _bitmaps(keys: Hashes, text: Indices, texts: int) -> Hashes:
    """For every text which of the hashes' endings an odd number of its grams have."""
    cells = text * _BITS + (keys & np.uint64(_BITS - 1)).astype(np.int64)
    odd = np.bincount(cells, minlength=texts * _BITS).astype(np.uint8) & 1
    return np.packbits(odd).view(np.uint64).reshape(texts, _BITS // 64)


def _meeting(left: _Rarest, right: _Rarest) -> Indices:
    """Pairs of texts that share as many of their rarest grams as near ones must."""
    first = np.searchsorted(right.tokens, left.tokens, side="left")
    matches = np.searchsorted(right.tokens, left.tokens, side="right") - first
    if matches.sum() > _HELD_MATCHES and left.texts.min() < left.texts.max():
        return np.concatenate([_meeting(half, right) for half in left.halves()])
    offsets = np.cumsum(matches) - matches
    at = np.arange(matches.sum()) + np.repeat(first - offsets, matches)
    keys = (np.repeat(left.texts, matches) << np.uint64(32)) | right.texts[at]
    pairs, times = np.unique(keys, return_counts=True)
    i, j = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(int)
    enough = times >= np.minimum(left.shared[i], right.shared[j])
    return np.stack((i[enough], j[enough]), axis=1)
