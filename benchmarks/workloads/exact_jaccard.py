"""All pairs of texts whose exact Jaccard similarity reaches a threshold: what recall is held to.

A self-join with the prefix filter of Chaudhuri et al. ("A primitive operator for similarity
joins", 2006), ordered by frequency: two sets that are that similar share at least one of their
rarest members. It uses no MinHash and shares no code with what it judges.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import ceil

Pair = tuple[int, int]


def shingle_chars(text: str, width: int = 5) -> list[str]:
    """Character n-grams, the whole text if it is shorter."""
    return [text[i : i + width] for i in range(max(1, len(text) - width + 1))]


def shingle_words(text: str, width: int = 3) -> list[str]:
    """Word n-grams of a text with one space between words, the whole text if it is shorter."""
    words = text.split()
    if len(words) <= width:
        return [text]
    return list(map(" ".join, zip(*(words[k:] for k in range(width)), strict=False)))


def similar_pairs(
    texts: Sequence[str], members: Sequence[int], shingle: Callable[[str], list[str]], least: float
) -> set[Pair]:
    """Every pair of the members with Jaccard similarity `least` or more.

    Args:
        texts: normalised texts.
        members: which of them to compare.
        shingle: what a text consists of.
        least: the threshold, above 0.

    Returns:
        Pairs (i, j) of text numbers, i < j.
    """
    # Hashes instead of strings: the memory of a hundred thousand texts. Two of some ten million
    # different strings share a 64-bit hash once in a hundred thousand corpora.
    sets = {i: frozenset(map(hash, shingle(texts[i]))) for i in members}
    counts: Counter[int] = Counter()
    for grams in sets.values():
        counts.update(grams)
    index: dict[int, list[int]] = defaultdict(list)
    found: set[Pair] = set()
    # From short to long: a partner has at least the share `least` of the longer one's size.
    for i in sorted(members, key=lambda i: (len(sets[i]), i)):
        grams = sets[i]
        # A gram of one text alone leads to nobody, but it takes its place in the prefix.
        prefix = sorted(grams, key=lambda g: (counts[g], g))
        prefix = prefix[: len(grams) - ceil(least * len(grams) - 1e-9) + 1]
        smallest = least * len(grams) - 1e-9
        near = {j for g in prefix if counts[g] > 1 for j in index[g] if len(sets[j]) >= smallest}
        for j in near:
            shared = len(grams & sets[j])
            if shared / (len(grams) + len(sets[j]) - shared) >= least:
                found.add((min(i, j), max(i, j)))
        for g in prefix:
            if counts[g] > 1:
                index[g].append(i)
    return found


def pair_scores(found: Iterable[Sequence[int]], truth: Iterable[Sequence[int]]) -> dict[str, float]:
    """Recall and precision of pairs; both are 1 where there is nothing to find or nothing found."""
    wanted = {(int(i), int(j)) for i, j in truth}
    given = {(int(i), int(j)) for i, j in found}
    right = len(wanted & given)
    return {
        "recall": right / len(wanted) if wanted else 1.0,
        "precision": right / len(given) if given else 1.0,
    }
