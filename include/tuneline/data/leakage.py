"""An independent, exact look for near-duplicates across splits.

It shares nothing with the MinHash search but the definition of similarity: sets of n-gram
strings, and the prefix filter of Chaudhuri et al. ("A primitive operator for similarity joins",
2006), which finds every pair at or above the threshold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil

from tuneline.data.shingles import CHARS, LONG, SHORT, WORDS


def char_grams(text: str) -> frozenset[str]:
    """The set of character 5-grams of a text, the text itself if it is shorter."""
    return frozenset(text[i : i + CHARS] for i in range(max(1, len(text) - CHARS + 1)))


def word_grams(text: str) -> frozenset[str]:
    """The set of word 3-grams of a text, the text itself if it is shorter."""
    words = text.split()
    return frozenset(" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1)))


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
    for grams, fits in (
        (char_grams, lambda text: len(text) <= SHORT),
        (word_grams, lambda text: len(text) > LONG),
    ):
        a = {i: grams(text) for i, text in enumerate(left) if fits(text)}
        b = {i: grams(text) for i, text in enumerate(right) if fits(text)}
        for i, match in _join(a, b, threshold).items():
            if i not in found or match[1] > found[i][1]:
                found[i] = match
    return found


def _join(
    left: dict[int, frozenset[str]], right: dict[int, frozenset[str]], threshold: float
) -> dict[int, tuple[int, float]]:
    counts: Counter[str] = Counter()
    for grams in (*left.values(), *right.values()):
        counts.update(grams)

    def rare_first(grams: frozenset[str]) -> list[str]:
        # Two sets this similar share one of their rarest grams: so many cannot all differ.
        keep = len(grams) - ceil(threshold * len(grams) - 1e-9) + 1
        return sorted(grams, key=lambda gram: (counts[gram], gram))[:keep]

    index: dict[str, list[int]] = {}
    for j, grams in right.items():
        for gram in rare_first(grams):
            index.setdefault(gram, []).append(j)
    found: dict[int, tuple[int, float]] = {}
    for i, grams in left.items():
        near = {j for gram in rare_first(grams) for j in index.get(gram, ())}
        for j in sorted(near):
            shared = len(grams & right[j])
            similarity = shared / (len(grams) + len(right[j]) - shared)
            if similarity >= threshold and similarity > found.get(i, (0, 0.0))[1]:
                found[i] = (j, similarity)
    return found
