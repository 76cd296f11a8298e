"""An exact look for near-duplicates across splits.

It shares shingles with the MinHash search, but neither signatures nor bands: candidates come from
the prefix filter of Chaudhuri et al. ("A primitive operator for similarity joins", 2006), which
finds every pair at or above the threshold, and each is judged by its sets of n-gram strings. The
filter runs on arrays, so that a hundred thousand rows take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
# Pairs of texts held at once before repeats are dropped.
_HELD_PAIRS = 1 << 22


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
    """Pairs that share one of their rarest grams: sets this similar cannot all differ in those.

    Returns:
        Shape (pairs, 2), in order, each pair once.
    """
    counts = np.zeros(_CELLS, dtype=np.int64)
    for side in (left, right):
        for _, keys in _sets(side, shingle):
            counts += np.bincount(_cell(keys), minlength=_CELLS)
    a_tokens, a_texts = _rarest(left, shingle, counts, threshold)
    b_tokens, b_texts = _rarest(right, shingle, counts, threshold)
    first = np.searchsorted(b_tokens, a_tokens, side="left")
    matches = np.searchsorted(b_tokens, a_tokens, side="right") - first
    found: list[Hashes] = [np.empty(0, dtype=np.uint64)]
    ends = np.cumsum(matches)
    start = 0
    while start < len(ends):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _HELD_PAIRS, side="right")))
        part = matches[start:stop]
        offsets = np.cumsum(part) - part
        at = np.arange(part.sum()) + np.repeat(first[start:stop] - offsets, part)
        pairs = (np.repeat(a_texts[start:stop], part) << np.uint64(32)) | b_texts[at]
        found = [np.unique(np.concatenate((*found, pairs)))]
        start = stop
    pairs = found[0]
    return np.stack((pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)), axis=1).astype(
        np.int64
    )


def _sets(
    texts: Sequence[str], shingle: Callable[[Sequence[str]], Shingled]
) -> Iterator[tuple[int, Hashes]]:
    """Batches of texts as `distinct` gives them, with the number of the first text."""
    for batch in batches(texts):
        yield batch.start, distinct(shingle(texts[batch]))


def _cell(keys: Hashes) -> NDArray[np.int64]:
    return (keys & np.uint64(_CELLS - 1)).astype(np.int64)


def _rarest(
    texts: Sequence[str],
    shingle: Callable[[Sequence[str]], Shingled],
    counts: NDArray[np.int64],
    threshold: float,
) -> tuple[Hashes, Hashes]:
    """The rarest grams of every text, as many as the threshold makes meet.

    Returns:
        Tokens in ascending order, and the number of the text of each.
    """
    tokens: list[Hashes] = [np.empty(0, dtype=np.uint64)]
    owners: list[Hashes] = [np.empty(0, dtype=np.uint64)]
    text_shift = np.uint64(_COUNT_BITS + _HASH_BITS)
    for first, keys in _sets(texts, shingle):
        count = np.minimum(counts[_cell(keys)], (1 << _COUNT_BITS) - 1).astype(np.uint64)
        token = (count << np.uint64(_HASH_BITS)) | (keys & np.uint64((1 << _HASH_BITS) - 1))
        ranked = np.sort((keys & ~_TOKEN) | token)
        text = (ranked >> text_shift).astype(np.int64)
        sizes = np.bincount(text)
        keep = sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1
        place = np.arange(len(ranked)) - (np.cumsum(sizes) - sizes)[text]
        kept = place < keep[text]
        tokens.append(ranked[kept] & _TOKEN)
        owners.append(text[kept].astype(np.uint64) + np.uint64(first))
    token, owner = np.concatenate(tokens), np.concatenate(owners)
    order = np.argsort(token)
    return token[order], owner[order]
