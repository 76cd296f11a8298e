"""Find near-duplicates across groups of rows a second time, by datasketch.

It shares the definition of the n-gram with the search of `deduplication` (`minhash`) and nothing
else: sets of n-gram strings, another hash, sketch and index. Candidates are verified by their sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tuneline.data.near_duplicates.shingles import LONG, SHORT, char_grams, word_grams

PERMUTATIONS, SEED = 128, 3
# The least probability that a pair exactly at the threshold is a candidate.
RECALL = 0.999

_KINDS: tuple[tuple[Callable[[str], frozenset[str]], Callable[[str], bool]], ...] = (
    (char_grams, lambda text: len(text) <= SHORT),
    (word_grams, lambda text: len(text) > LONG),
)


def bands_for(threshold: float) -> tuple[int, int]:
    """Return the number of the widest bands that keep the recall, and their width."""
    # datasketch wants two bands or more.
    widths = range(PERMUTATIONS // 2, 0, -1)
    found = (r for r in widths if (1 - threshold**r) ** (PERMUTATIONS // r) <= 1 - RECALL)
    width = next(found, 1)
    return PERMUTATIONS // width, width


def cross_pairs(
    texts: Sequence[str], sides: Sequence[int], threshold: float
) -> Iterator[tuple[int, int, float]]:
    """Yield `(i, j, similarity)` of similar texts on different sides, maybe twice, i on the lower.

    Side 0, best that of most texts, takes no memory.
    """
    from datasketch import MinHash, MinHashLSH
    from xxhash import xxh32_intdigest

    # From the highest side down, so that each text meets only those that it is compared with.
    order = sorted(range(len(texts)), key=lambda number: -sides[number])
    for grams, fits in _KINDS:
        numbers = [number for number in order if fits(texts[number])]
        sets = ([gram.encode() for gram in grams(texts[number])] for number in numbers)
        sketches = MinHash.generator(
            sets, num_perm=PERMUTATIONS, seed=SEED, hashfunc=xxh32_intdigest
        )
        index = MinHashLSH(num_perm=PERMUTATIONS, params=bands_for(threshold))
        for number, sketch in zip(numbers, sketches, strict=True):
            near = [other for other in index.query(sketch) if sides[other] > sides[number]]
            own = grams(texts[number]) if near else frozenset()
            for other in sorted(near):
                shared = len(own & grams(texts[other]))
                similarity = shared / (len(own) + len(grams(texts[other])) - shared)
                if similarity >= threshold:
                    yield number, other, similarity
            if sides[number]:
                index.insert(number, sketch, check_duplication=False)
