import random
from itertools import combinations

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH

from tuneline.data.near_duplicates.minhash import (
    BANDS_MANY,
    NUM_PERM,
    band_keys,
    bands_for,
    candidates,
    jaccard,
    near_pairs,
    signatures,
)
from tuneline.data.near_duplicates.shingles import (
    LONG,
    SHORT,
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


@pytest.mark.parametrize("shingle", [shingle_chars, shingle_words])
def test_signatures_are_datasketchs_bit_by_bit(shingle):
    texts = [normalise(t) for t in texts_of(1, 2000, 12)] + ["", "a", "ab cd", "你好", "é" * 300]
    shingled = shingle(texts)
    ours = signatures(shingled)
    assert ours.shape == (NUM_PERM, len(texts))
    for index in range(len(texts)):
        theirs = MinHash(num_perm=NUM_PERM, scheme="affine32", hashfunc=int)
        theirs.update_batch(shingled.of(index).astype(np.uint32).tolist())
        assert np.array_equal(ours[:, index], theirs.hashvalues)


@pytest.mark.parametrize(
    ("shingle", "grams"), [(shingle_chars, char_grams), (shingle_words, word_grams)]
)
def test_similarity_of_hashes_is_that_of_sets(shingle, grams):
    texts = [normalise(t) for t in with_copies(2, 60, 20)] + ["", "a", "one two", "one two three"]
    pairs = list(combinations(range(len(texts)), 2))
    left, right = ([texts[i] for i in side] for side in zip(*pairs, strict=True))
    sets = [(grams(texts[i]), grams(texts[j])) for i, j in pairs]
    expected = [len(a & b) / len(a | b) for a, b in sets]
    measured = [
        jaccard(shingle(left[at : at + 4096]), shingle(right[at : at + 4096]))
        for at in range(0, len(pairs), 4096)
    ]
    assert np.concatenate(measured) == pytest.approx(expected)


@pytest.mark.parametrize("few_rows", [5_000, 0], ids=["few", "many"])
@pytest.mark.parametrize("words", [12, 110])
def test_recall_and_precision_against_exact_sets(words, few_rows, monkeypatch):
    monkeypatch.setattr("tuneline.data.near_duplicates.minhash.FEW_ROWS", few_rows)
    texts = [normalise(t) for t in with_copies(3, 500, words)]
    grams = char_grams if words == 12 else word_grams
    assert all(len(t) <= SHORT if words == 12 else len(t) > LONG for t in texts)
    sets = [grams(t) for t in texts]
    exact = {
        (i, j)
        for i, j in combinations(range(len(texts)), 2)
        if len(sets[i] & sets[j]) >= 0.8 * len(sets[i] | sets[j])
    }
    found = {(i, j) for i, j, _ in near_pairs(texts, 0.8)}
    assert len(exact) > 50
    assert found <= exact
    assert len(found) >= 0.99 * len(exact)


def test_bands_for_many_rows_find_what_datasketch_finds_and_more():
    texts = [normalise(t) for t in with_copies(4, 400, 30)]
    sigs = signatures(shingle_words(texts))
    count, width = BANDS_MANY
    lsh = MinHashLSH(num_perm=NUM_PERM, params=(count, width))
    hashes = [MinHash(num_perm=NUM_PERM, hashvalues=row, scheme="affine32") for row in sigs.T]
    for index, sketch in enumerate(hashes):
        lsh.insert(index, sketch)
    theirs = {(min(i, j), max(i, j)) for i, s in enumerate(hashes) for j in lsh.query(s) if i != j}
    ours = {(int(i), int(j)) for i, j in candidates(band_keys(sigs, BANDS_MANY))}
    assert ours == theirs


def test_bands_follow_rows_and_threshold():
    assert bands_for(100, 0.8) == (25, 5)
    assert bands_for(10**6, 0.8) == (21, 6)
    count, width = bands_for(10**6, 0.5)
    assert count * width <= NUM_PERM
    assert 1 - (1 - 0.5**width) ** count >= 0.99


def test_pairs_across_the_length_limit_are_found():
    text = " ".join(f"word{n}" for n in range(60))[:SHORT].rsplit(" ", 1)[0]
    longer = f"{text} and one more"
    assert len(text) <= SHORT < len(longer)
    assert [(i, j) for i, j, _ in near_pairs([text, longer], 0.8)] == [(0, 1)]


def test_nothing_to_compare():
    assert near_pairs([], 0.8) == []
    assert near_pairs(["one text"], 0.8) == []
    assert near_pairs(["", "other"], 0.8) == []
