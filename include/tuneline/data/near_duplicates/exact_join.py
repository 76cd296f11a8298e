"""An exact look for near-duplicates across splits.

It shares shingles with the MinHash search, but neither signatures nor bands: candidates come from
the prefix and position filters of Xiao et al. ("Efficient similarity joins for near-duplicate
detection", 2008) and the bitmap filter of Sandes et al. ("Bitmap filter: speeding up exact set
similarity joins with bitwise operations", 2020), which keep every pair at or above the threshold,
and each pair that is left is judged by its sets of n-gram strings. The filters run on arrays, so
that a hundred thousand rows take seconds, even where they share whole sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from tuneline.data.near_duplicates.bitmaps import alike, bitmaps
from tuneline.data.near_duplicates.minhash import PAIRS, distinct, jaccard
from tuneline.data.near_duplicates.shingles import (
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
from tuneline.machine.threads import in_threads

# Hashes are counted in a table of this many cells: rare and frequent is all that matters.
_CELLS = 1 << 20
# A token is a gram's count and `_HASH_BITS` bits of its hash: in order of tokens, the rarest grams
# come first. Below a token stands the number of its text's grams, as far as `_SIZE_BITS` hold it.
_COUNT_BITS, _HASH_BITS, _SIZE_BITS = 16, 36, 12
_TOKEN = np.uint64((1 << (_COUNT_BITS + _HASH_BITS)) - 1)
_MOST_SIZE = (1 << _SIZE_BITS) - 1
# Grams in common that are held at once, of all pairs.
_HELD_MATCHES = 1 << 16


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
    """Pairs that no filter can rule out.

    Returns:
        Shape (pairs, 2), in order, each pair once.
    """
    counts = np.zeros(_CELLS, dtype=np.int64)
    for side in (left, right):
        grams = (side[batch] for batch in batches(side))
        for cells in in_threads(lambda texts: _cell(distinct(shingle(texts))), grams):
            counts += np.bincount(cells, minlength=_CELLS)
    held = _rarest(right, shingle, counts, threshold).sorted()
    keys = held.keys(held.sizes[held.texts])

    def meet(batch: slice) -> Indices:
        grams = distinct(shingle(left[batch]))
        pairs = _meeting(_rarest_of(grams, counts, threshold), held, keys, threshold)
        pairs[:, 0] += batch.start
        return pairs

    return np.concatenate([np.empty((0, 2), dtype=np.int64), *in_threads(meet, batches(left))])


def _cell(keys: Hashes) -> NDArray[np.int64]:
    return (keys & np.uint64(_CELLS - 1)).astype(np.int64)


@dataclass(frozen=True)
class _Rarest:
    """The rarest grams of texts, so many that near texts share one of them.

    Attributes:
        tokens: of the grams.
        texts: number of the text of each.
        reach: of how many grams a near text may be at most, if this is the rarest gram that the
            two share.
        sizes: number of all grams of every text.
        bits: bitmap of every text.
    """

    tokens: Hashes
    texts: Indices
    reach: Indices
    sizes: Indices
    bits: Hashes

    def keys(self, sizes: Indices) -> Hashes:
        """Each token with a size below it."""
        low = np.minimum(sizes, _MOST_SIZE).astype(np.uint64)
        return (self.tokens << np.uint64(_SIZE_BITS)) | low

    def sorted(self) -> _Rarest:
        """The same in the order of tokens, equal ones in the order of their texts' sizes."""
        order = np.argsort(self.keys(self.sizes[self.texts]))
        return replace(
            self, tokens=self.tokens[order], texts=self.texts[order], reach=self.reach[order]
        )


def _rarest(
    texts: Sequence[str],
    shingle: Callable[[Sequence[str]], Shingled],
    counts: NDArray[np.int64],
    threshold: float,
) -> _Rarest:
    """The rarest grams of every text."""
    cut = list(batches(texts))
    parts = in_threads(
        lambda batch: _rarest_of(distinct(shingle(texts[batch])), counts, threshold), cut
    )
    found = [
        replace(part, texts=part.texts + batch.start)
        for batch, part in zip(cut, parts, strict=True)
    ]
    return _Rarest(
        *(np.concatenate([getattr(part, f.name) for part in found]) for f in fields(_Rarest))
    )


def _rarest_of(keys: Hashes, counts: NDArray[np.int64], threshold: float) -> _Rarest:
    """The rarest grams of every text of a batch.

    Sets of a and b members with a Jaccard similarity of at least t share at least
    `t / (1 + t) * (a + b)`. If the rarest that they share is at place p (from 0) of the one, they
    share at most `a - p`, so that b is at most `(a - p) * (1 + t) / t - a`; and b is at least
    `t * a` in any case.

    Args:
        keys: of `distinct`.
        counts: how often the grams of each cell are written.
        threshold: the Jaccard similarity.
    """
    text_shift = np.uint64(_COUNT_BITS + _HASH_BITS)
    count = np.minimum(counts[_cell(keys)], (1 << _COUNT_BITS) - 1).astype(np.uint64)
    token = (count << np.uint64(_HASH_BITS)) | (keys & np.uint64((1 << _HASH_BITS) - 1))
    ranked = np.sort((keys & ~_TOKEN) | token)
    text = (ranked >> text_shift).astype(np.int64)
    sizes = np.bincount(text)
    place = np.arange(len(ranked)) - (np.cumsum(sizes) - sizes)[text]
    size = sizes[text]
    reach = np.floor((size - place) * ((1 + threshold) / threshold) - size + 1e-9)
    kept = reach >= threshold * size - 1e-9
    return _Rarest(
        tokens=ranked[kept] & _TOKEN,
        texts=text[kept],
        reach=reach[kept].astype(np.int64),
        sizes=sizes,
        bits=bitmaps(keys, text, len(sizes)),
    )


def _meeting(left: _Rarest, right: _Rarest, keys: Hashes, threshold: float) -> Indices:
    """Pairs of texts that share one of their rarest grams and that their bitmaps let pass.

    Args:
        left: in any order.
        right: sorted.
        keys: of the right, with the sizes of its texts.
        threshold: Jaccard similarity that a pair must be able to reach.
    """
    least = np.ceil(threshold * left.sizes - 1e-9).astype(np.int64)
    first = np.searchsorted(keys, left.keys(least[left.texts]), side="left")
    last = np.searchsorted(keys, left.keys(left.reach), side="right")
    matches = np.maximum(last - first, 0)
    ends = np.cumsum(matches)
    found: list[Indices] = [np.empty(0, dtype=np.int64)]
    start = 0
    while start < len(matches):
        before = ends[start] - matches[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + _HELD_MATCHES, side="right")))
        times = matches[start:stop]
        run = first[start:stop] - (ends[start:stop] - times - before)
        at = np.arange(times.sum()) + np.repeat(run, times)
        i = np.repeat(left.texts[start:stop], times)
        fits = right.reach[at] >= left.sizes[i]
        i, j = i[fits], right.texts[at[fits]]
        near = alike((left.bits, left.sizes), (right.bits, right.sizes), (i, j), threshold)
        found.append((i[near] << 32) | j[near])
        start = stop
    pairs = np.unique(np.concatenate(found))
    return np.stack((pairs >> 32, pairs & 0xFFFFFFFF), axis=1)
