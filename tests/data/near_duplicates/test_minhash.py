import random
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from tuneline.data.near_duplicates.minhash import (
    BINS,
    BITS,
    alike_by_marks,
    bands_for,
    jaccard,
    marks,
    near_pairs,
    signatures,
)
from tuneline.data.near_duplicates.shingles import (
    LONG,
    SHORT,
    Shingled,
    char_grams,
    normalise,
    shingle_chars,
    shingle_words,
    word_grams,
)


def texts_of(seed, count, words):
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyzéß你", k=6)) for _ in range(400)]
    return [" ".join(draw.choices(vocabulary, k=words)) for _ in range(count)]


def with_copies(seed, count, words):
    """Texts and edited copies of them, at all similarities."""
    draw = random.Random(seed)
    texts = texts_of(seed, count, words)
    for text in texts[: count // 2]:
        parts = text.split()
        for _ in range(draw.randint(1, max(1, words // 10))):
            parts[draw.randrange(len(parts))] = "".join(draw.choices("xyz", k=5))
        texts.append(" ".join(parts))
    return list(dict.fromkeys(texts))


@pytest.mark.parametrize("words", [1, 4, 30, 300])
def test_signatures_agree_with_the_similarity(words):
    texts = with_copies(9, 400, words * 2)
    shingled = shingle_words(texts)
    sigs = signatures(shingled)
    pairs = np.array([(i, 400 + i) for i in range(len(texts) - 400)])
    similarity = jaccard(texts, pairs, shingle_words)
    agree = (sigs[pairs[:, 0]] == sigs[pairs[:, 1]]).mean(axis=1)
    assert (agree - similarity).mean() == pytest.approx(0, abs=0.015)
    # No wider than the estimate of 128 independent values.
    assert (agree - similarity).std() < 1.15 / (2 * BINS**0.5)


@pytest.mark.parametrize(
    ("shingle", "grams"), [(shingle_chars, char_grams), (shingle_words, word_grams)]
)
def test_similarity_of_hashes_is_that_of_sets(shingle, grams):
    texts = [normalise(t) for t in with_copies(2, 60, 20)] + ["", "a", "one two", "one two three"]
    pairs = list(combinations(range(len(texts)), 2))
    sets = [(grams(texts[i]), grams(texts[j])) for i, j in pairs]
    expected = [len(a & b) / len(a | b) for a, b in sets]
    assert jaccard(texts, np.array(pairs), shingle) == pytest.approx(expected)


@cache
def pairs_by_definition(words):
    """The texts of so many words, and their similar pairs, each pair of sets compared."""
    texts = [normalise(t) for t in with_copies(3, 500, words)]
    sets = [word_grams(t) if words == 110 else char_grams(t) for t in texts]
    exact = set()
    for (i, a), (j, b) in combinations(enumerate(sets), 2):
        shared = len(a & b)
        if shared >= 0.8 * (len(a) + len(b) - shared):
            exact.add((i, j))
    return texts, exact


@pytest.mark.parametrize("few_rows", [5_000, 0], ids=["few", "many"])
@pytest.mark.parametrize("words", [12, 50, 110])
def test_recall_and_precision_against_exact_sets(words, few_rows, monkeypatch):
    monkeypatch.setattr("tuneline.data.near_duplicates.minhash.FEW_ROWS", few_rows)
    texts, exact = pairs_by_definition(words)
    assert all(len(t) > LONG if words == 110 else len(t) <= SHORT for t in texts)
    found = {(i, j) for i, j, _ in near_pairs(texts, 0.8)}
    assert len(exact) > 20
    assert found <= exact
    assert len(found) >= 0.99 * len(exact)


def test_bands_follow_rows_and_threshold():
    assert bands_for(100, 0.8) == (25, 5)
    assert bands_for(10**6, 0.8) == (21, 6)
    count, width = bands_for(10**6, 0.5)
    assert count * width <= BINS
    assert 1 - (1 - 0.5**width) ** count >= 0.99


def sets(count, size, seed=3):
    draw = random.Random(seed)
    originals = [set(draw.sample(range(10**9), size)) for _ in range(count)]
    changed = []
    for number, members in enumerate(originals):
        gone = draw.sample(sorted(members), number * size // (2 * count))
        changed.append((members - set(gone)) | set(draw.sample(range(10**9), len(gone))))
    return originals, changed


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


def test_pairs_across_the_length_limit_are_found():
    text = " ".join(f"word{n}" for n in range(60))[:SHORT].rsplit(" ", 1)[0]
    longer = f"{text} and one more"
    assert len(text) <= SHORT < len(longer)
    assert [(i, j) for i, j, _ in near_pairs([text, longer], 0.8)] == [(0, 1)]


def test_nothing_to_compare():
    assert near_pairs([], 0.8) == []
    assert near_pairs(["one text"], 0.8) == []
    assert near_pairs(["", "other"], 0.8) == []
