"""The second opinion on near-duplicates: it finds what a comparison of all pairs finds."""

from itertools import combinations

import pytest
from benchmarks.dedup import exact_pairs
from benchmarks.workloads.near_duplicates import CHAT_WORDS, WORDS, make_corpus

from tuneline.data.near_duplicates import minhash, witness
from tuneline.data.near_duplicates.shingles import SHORT, char_grams, normalise, word_grams

# Fewest and most words of a text that is compared by its characters.
FEW_WORDS = (8, 40)


def corpus(rows, lengths):
    """Texts of invented words, each once, with planted copies of all similarities; three sides."""
    texts = list(dict.fromkeys(map(normalise, make_corpus(rows, lengths=lengths))))
    return texts, [number % 3 for number in range(len(texts))]


def across(pairs, sides):
    """The pairs of different sides, that of the lower one first."""
    ordered = (sorted(pair, key=sides.__getitem__) for pair in pairs)
    return {(i, j) for i, j in ordered if sides[i] != sides[j]}


@pytest.mark.parametrize("lengths", [FEW_WORDS, CHAT_WORDS, WORDS], ids=["few", "chat", "long"])
def test_both_searches_find_99_of_100_planted_pairs(lengths):
    texts, sides = corpus(4000, lengths)
    wanted = across(exact_pairs(texts), sides)
    assert len(wanted) > 100
    found = {(i, j) for i, j, _ in witness.cross_pairs(texts, sides, 0.8)}
    assert found <= wanted
    assert len(found) >= 0.99 * len(wanted)
    for low, high in ((0, 1), (0, 2), (1, 2)):
        left, right = ([n for n, side in enumerate(sides) if side == s] for s in (low, high))
        pairs = minhash.cross_pairs([texts[n] for n in left], [texts[n] for n in right], 0.8)
        second = {(left[i], right[j]) for i, j, _ in pairs}
        expected = {(i, j) for i, j in wanted if (sides[i], sides[j]) == (low, high)}
        assert second <= expected
        assert len(second) >= 0.99 * len(expected)


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9, 1.0])
def test_similarities_are_those_of_the_sets(threshold):
    texts, sides = corpus(250, (4, 9))
    texts += [texts[0], "", "a", "你好 世界"]
    sides += [0 if sides[0] else 1, 0, 1, 2]
    sets = [char_grams(text) for text in texts]
    wanted = {}
    for i, j in across(combinations(range(len(texts)), 2), sides):
        similarity = len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        if similarity >= threshold:
            wanted[i, j] = similarity
    assert wanted
    found = {(i, j): value for i, j, value in witness.cross_pairs(texts, sides, threshold)}
    assert found == pytest.approx(wanted)
    ours = [n for n, side in enumerate(sides) if side == 0]
    theirs = [n for n, side in enumerate(sides) if side == 1]
    near = minhash.nearest([texts[n] for n in ours], [texts[n] for n in theirs], threshold)
    best = {
        i: max(value for (a, b), value in wanted.items() if a == i and sides[b] == 1)
        for i in {a for a, b in wanted if sides[a] == 0 and sides[b] == 1}
    }
    assert {ours[i]: value for i, (_, value) in near.items()} == pytest.approx(best)


def test_another_seed_finds_the_same_pairs(monkeypatch):
    texts, sides = corpus(1500, WORDS)
    first = set(witness.cross_pairs(texts, sides, 0.8))
    monkeypatch.setattr(witness, "SEED", 11)
    assert set(witness.cross_pairs(texts, sides, 0.8)) == first


def test_pairs_across_the_length_limit_are_found():
    text = " ".join(f"word{n}" for n in range(60))[:SHORT].rsplit(" ", 1)[0]
    longer = f"{text} and one more"
    ((i, j, similarity),) = witness.cross_pairs([longer, text], [0, 1], 0.8)
    assert (i, j) == (0, 1)
    a, b = word_grams(longer), word_grams(text)
    assert similarity == len(a & b) / len(a | b)
    assert minhash.cross_pairs([longer], [text], 0.8) == [(0, 0, similarity)]


def test_a_text_that_many_others_equal_is_found():
    many = ["one and the same question"] * 200
    assert set(minhash.nearest(many, many[:1], 0.8)) == set(range(200))
    found = list(witness.cross_pairs([*many, many[0]], [0] * 200 + [1], 0.8))
    assert len(found) == 200


def test_nothing_to_compare():
    assert list(witness.cross_pairs([], [], 0.8)) == []
    assert list(witness.cross_pairs(["one text", "one text"], [1, 1], 0.8)) == []
    assert minhash.cross_pairs([], ["a"], 0.5) == []
    assert minhash.cross_pairs(["one text"], ["quite another"], 0.5) == []
