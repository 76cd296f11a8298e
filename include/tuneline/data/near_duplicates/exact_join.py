"""Find all pairs of similar texts by an exact join, the witness of the MinHash search.

It has no signatures, no bands and no estimate. With MinHash it shares the definition of the shingle
and the bitmap filter, which both use to save time and which is tested on its own. Candidates come
from the prefix and position filters of Xiao et al. ("Efficient similarity joins for near-duplicate
detection", 2008) and the bitmap filter of Sandes et al. ("Bitmap filter: speeding up exact set
similarity joins with bitwise operations", 2020). None of these rules out a pair at or above the
threshold, and each candidate is judged by its sets of n-gram strings. The filters run on arrays, so
that a hundred thousand rows take seconds, even if they share whole sentences.

It judges the split in `deduplication`, the dataset in `final_audit`, and the recall of MinHash in
`tuneline bench dedup`. The witness of this join is the search of `holdout_performance`, which
compares every pair without any filter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from tuneline.data.near_duplicates.bitmaps import alike, bitmaps
from tuneline.data.near_duplicates.shingles import (
    LONG,
    SHORT,
    Hashes,
    Indices,
    Shingled,
    batches,
    char_grams,
    distinct,
    shingle_chars,
    shingle_words,
    text_of,
    word_grams,
)
from tuneline.machine.cores import in_threads

# Hashes are counted in a table of this many cells: only rare or frequent matters.
_CELLS = 1 << 20
# A token is the count of a gram above the lower bits of its hash, so that in the order of tokens
# the rarest grams come first. A sort key is a token above the size of its text's set, which is cut
# off at `_MOST_SIZE`.
_COUNT_BITS, _HASH_BITS, _SIZE_BITS = 16, 36, 12
_TOKEN = np.uint64((1 << (_COUNT_BITS + _HASH_BITS)) - 1)
_MOST_SIZE = (1 << _SIZE_BITS) - 1
# Most shared grams, over all pairs, that are in memory at once, and most pairs that are judged.
_HELD_MATCHES = 1 << 16
_HELD_PAIRS = 1 << 12

_Shingle = Callable[[Sequence[str]], Shingled]


@dataclass(frozen=True)
class _Kind:
    """A kind of shingle: its sets as strings, its hashes, and the texts that it applies to."""

    grams: Callable[[str], frozenset[str]]
    shingle: _Shingle
    fits: Callable[[str], bool]


_KINDS = (
    _Kind(char_grams, shingle_chars, lambda text: len(text) <= SHORT),
    _Kind(word_grams, shingle_words, lambda text: len(text) > LONG),
)


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the Jaccard similarity of two sets that are not empty."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def cross_similarities(
    left: Sequence[str], right: Sequence[str], threshold: float
) -> dict[int, tuple[int, float]]:
    """Find the texts on the left that are similar to a text on the right.

    Args:
        left: normalised texts.
        right: normalised texts.
        threshold: Jaccard similarity from which two texts are near-duplicates.

    Returns:
        For the number of each such left text: the number of the most similar right text, and the
        similarity.
    """
    found: dict[int, tuple[int, float]] = {}
    for i, j, value in similar_pairs(left, right, threshold):
        if i not in found or value > found[i][1]:
            found[i] = (j, value)
    return found


def similar_pairs(
    left: Sequence[str], right: Sequence[str], threshold: float
) -> Iterator[tuple[int, int, float]]:
    """Yield each pair of similar texts: both numbers and the similarity.

    A pair to which both kinds of shingles apply may come twice. For the arguments see
    `cross_similarities`.
    """
    for kind in _KINDS:
        a, b = ([i for i, text in enumerate(side) if kind.fits(text)] for side in (left, right))
        if a and b:
            ours, theirs = [left[i] for i in a], [right[j] for j in b]
            pairs = _candidates(ours, theirs, kind.shingle, threshold)
            for i, j, value in _judged(ours, theirs, pairs, kind.grams):
                if value >= threshold:
                    yield a[i], b[j], value


def pairs_among(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Yield each pair of similar texts of one list, the smaller number first."""
    for kind in _KINDS:
        chosen = [i for i, text in enumerate(texts) if kind.fits(text)]
        if chosen:
            ours = [texts[i] for i in chosen]
            pairs = _candidates(ours, ours, kind.shingle, threshold, once=True)
            for i, j, value in _judged(ours, ours, pairs, kind.grams):
                if value >= threshold:
                    yield chosen[i], chosen[j], value


def _judged(
    left: Sequence[str],
    right: Sequence[str],
    pairs: Indices,
    grams: Callable[[str], frozenset[str]],
) -> Iterator[tuple[int, int, float]]:
    """Yield each candidate with the similarity of its sets of strings."""
    for start in range(0, len(pairs), _HELD_PAIRS):
        part = pairs[start : start + _HELD_PAIRS].tolist()
        ours = {i: grams(left[i]) for i in {i for i, _ in part}}
        theirs = {j: grams(right[j]) for j in {j for _, j in part}}
        for i, j in part:
            yield i, j, similarity(ours[i], theirs[j])


def _candidates(
    left: Sequence[str],
    right: Sequence[str],
    shingle: _Shingle,
    threshold: float,
    *,
    once: bool = False,
) -> Indices:
    """Return the pairs that no filter rules out: shape (pairs, 2), in order, each once.

    With `once`, only pairs whose right number is the greater one.
    """
    counts = np.zeros(_CELLS, dtype=np.int64)
    for side in (left, right):
        grams = (side[batch] for batch in batches(side))
        for cells in in_threads(lambda texts: _cell(distinct(shingle(texts))), grams):
            # Not by `bincount`, which makes and adds a whole table for each batch.
            np.add.at(counts, cells, 1)
    held = _rarest(right, shingle, counts, threshold).sorted()
    keys = held.keys(held.sizes[held.texts])

    def meet(batch: slice) -> Indices:
        grams = distinct(shingle(left[batch]))
        ours = _rarest_of(grams, counts, threshold)
        pairs = _meeting(ours, held, keys, threshold, batch.start if once else None)
        pairs[:, 0] += batch.start
        return pairs

    return np.concatenate([np.empty((0, 2), dtype=np.int64), *in_threads(meet, batches(left))])


def _cell(keys: Hashes) -> NDArray[np.int64]:
    return (keys & np.uint64(_CELLS - 1)).astype(np.int64)


@dataclass(frozen=True)
class _Rarest:
    """The rarest grams of texts, enough of them that two similar texts share at least one.

    Attributes:
        tokens: token of each gram.
        texts: number of the text of each gram.
        reach: size of the largest set that a similar text can have, if this gram is the rarest
            that the two share.
        sizes: size of the set of every text.
        bits: bitmap of every text.
    """

    tokens: Hashes
    texts: Indices
    reach: Indices
    sizes: Indices
    bits: Hashes

    def keys(self, sizes: Indices) -> Hashes:
        """Return a sort key of each gram, with a size for each."""
        low = np.minimum(sizes, _MOST_SIZE).astype(np.uint64)
        return (self.tokens << np.uint64(_SIZE_BITS)) | low

    def sorted(self) -> _Rarest:
        """Return the same grams in the order of tokens, then of the sizes of their texts."""
        order = np.argsort(self.keys(self.sizes[self.texts]))
        return replace(
            self, tokens=self.tokens[order], texts=self.texts[order], reach=self.reach[order]
        )


def _rarest(
    texts: Sequence[str], shingle: _Shingle, counts: NDArray[np.int64], threshold: float
) -> _Rarest:
    """Return the rarest grams of every text."""
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
    """Return the rarest grams of every text of a batch.

    Two sets of a and b members with a Jaccard similarity of at least t share at least
    `t / (1 + t) * (a + b)` of them. If the rarest shared one is at place p (from 0) of the first
    set, they share at most `a - p`, so b is at most `(a - p) * (1 + t) / t - a`. In any case b is
    at least `t * a`.

    Args:
        keys: the sets of a batch, from `distinct`.
        counts: number of occurrences of the grams of each cell.
        threshold: the Jaccard similarity.
    """
    count = np.minimum(counts[_cell(keys)], (1 << _COUNT_BITS) - 1).astype(np.uint64)
    token = (count << np.uint64(_HASH_BITS)) | (keys & np.uint64((1 << _HASH_BITS) - 1))
    ranked = np.sort((keys & ~_TOKEN) | token)
    text = text_of(ranked)
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


def _meeting(
    left: _Rarest, right: _Rarest, keys: Hashes, threshold: float, start: int | None
) -> Indices:
    """Return the pairs of texts that share one of their rarest grams and pass the bitmap filter.

    Args:
        left: grams in any order.
        right: sorted grams.
        keys: sort keys of the right grams, with the sizes of their texts.
        threshold: Jaccard similarity that a pair must be able to reach.
        start: number of the first left text among the right ones, to find each pair of one side
            once; None if the sides differ.
    """
    least = np.ceil(threshold * left.sizes - 1e-9).astype(np.int64)
    first = np.searchsorted(keys, left.keys(least[left.texts]), side="left")
    last = np.searchsorted(keys, left.keys(left.reach), side="right")
    matches = np.maximum(last - first, 0)
    ends = np.cumsum(matches)
    found: list[Indices] = [np.empty(0, dtype=np.int64)]
    at = 0
    while at < len(matches):
        before = ends[at] - matches[at]
        stop = max(at + 1, int(np.searchsorted(ends, before + _HELD_MATCHES, side="right")))
        times = matches[at:stop]
        run = first[at:stop] - (ends[at:stop] - times - before)
        place = np.arange(times.sum()) + np.repeat(run, times)
        i = np.repeat(left.texts[at:stop], times)
        fits = right.reach[place] >= left.sizes[i]
        i, j = i[fits], right.texts[place[fits]]
        if start is not None:
            later = np.flatnonzero(j > i + start)
            i, j = i[later], j[later]
        near = alike((left.bits, left.sizes), (right.bits, right.sizes), (i, j), threshold)
        found.append((i[near] << 32) | j[near])
        at = stop
    pairs = np.sort(np.concatenate(found))
    pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]]
    return np.stack((pairs >> 32, pairs & 0xFFFFFFFF), axis=1)
