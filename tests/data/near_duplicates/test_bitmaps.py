import random

import numpy as np
import pytest

from tuneline.data.near_duplicates.bitmaps import BITS, alike, alike_by_marks, bitmaps, marks
from tuneline.data.near_duplicates.shingles import Shingled


def sets(count, size, seed=3):
    draw = random.Random(seed)
    originals = [set(draw.sample(range(10**9), size)) for _ in range(count)]
    changed = []
    for number, members in enumerate(originals):
        gone = draw.sample(sorted(members), number * size // (2 * count))
        changed.append((members - set(gone)) | set(draw.sample(range(10**9), len(gone))))
    return originals, changed


def known(members):
    hashes = np.array([h for one in members for h in sorted(one)], dtype=np.uint64)
    sizes = np.array([len(one) for one in members])
    return bitmaps(hashes, np.repeat(np.arange(len(members)), sizes), len(members)), sizes


@pytest.mark.parametrize("size", [12, 150, 2000])
@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_no_pair_that_reaches_the_threshold_is_ruled_out(size, threshold):
    left, right = sets(60, size)
    pairs = np.indices((60, 60)).reshape(2, -1)
    passed = alike(known(left), known(right), (pairs[0], pairs[1]), threshold)
    near = [
        number
        for number, (i, j) in enumerate(pairs.T.tolist())
        if len(left[i] & right[j]) >= threshold * len(left[i] | right[j])
    ]
    assert near
    assert set(near) <= set(passed.tolist())
    if size < BITS:
        assert len(passed) < len(near) + 60, "unlike pairs are ruled out"


def test_sizes_alone_rule_out():
    full = np.zeros((2, BITS // 64), dtype=np.uint64)
    sides = (full, np.array([10, 100]))
    pairs = (np.array([0, 0, 1]), np.array([0, 1, 1]))
    assert alike(sides, sides, pairs, 0.8).tolist() == [0, 2]


def test_an_even_number_of_grams_leaves_no_bit():
    hashes = np.array([5, 5 + BITS, 6], dtype=np.uint64)
    found = bitmaps(hashes, np.array([0, 0, 1]), 2)
    assert np.bitwise_count(found).sum(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize("size", [12, 150, 2000])
@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_marks_rule_out_no_pair_that_reaches_the_threshold(size, threshold):
    left, right = sets(60, size)
    members = [sorted(one) for one in [*left, *right]]
    # Shingles of a text repeat; that changes no set.
    repeated = [one + one[:5] for one in members]
    hashes = np.array([h for one in repeated for h in one], dtype=np.uint64)
    sizes = np.array([len(one) for one in repeated])
    bits = marks(Shingled(hashes, np.concatenate(([0], np.cumsum(sizes)))))
    pairs = np.indices((60, 60)).reshape(2, -1).T + np.array([0, 60])
    passed = alike_by_marks(bits, sizes, pairs, threshold)
    near = [
        number
        for number, (i, j) in enumerate(pairs.tolist())
        if len(left[i] & right[j - 60]) >= threshold * len(left[i] | right[j - 60])
    ]
    assert near
    assert set(near) <= set(passed.tolist())
    if size < BITS / 2:
        assert len(passed) < len(near) + 80, "unlike pairs are ruled out"
