import ast
import random
from itertools import product
from pathlib import Path

import pytest

from tuneline.data.near_duplicates import bitmaps, exact_join, minhash, shingles
from tuneline.data.near_duplicates.exact_join import (
    cross_similarities,
    pairs_among,
    similar_pairs,
    similarity,
)
from tuneline.data.near_duplicates.shingles import LONG, SHORT, char_grams, word_grams


def brute_force(left, right, threshold):
    found = {}
    for (i, a), (j, b) in product(enumerate(left), enumerate(right)):
        for grams, fits in (
            (char_grams, lambda t: len(t) <= SHORT),
            (word_grams, lambda t: len(t) > LONG),
        ):
            if fits(a) and fits(b):
                x, y = grams(a), grams(b)
                value = len(x & y) / len(x | y)
                if value >= threshold:
                    found[i, j] = max(value, found.get((i, j), 0))
    return found


@pytest.mark.parametrize("held", [1 << 22, 40], ids=["at once", "in parts"])
def test_it_finds_what_comparing_all_pairs_finds(held, monkeypatch):
    monkeypatch.setattr(exact_join, "_HELD_MATCHES", held)
    monkeypatch.setattr(exact_join, "_HELD_PAIRS", held)
    draw = random.Random(5)
    vocabulary = ["".join(draw.choices("abcdefgh", k=5)) for _ in range(60)]
    for words in (1, 3, 12, 90):
        right = [" ".join(draw.choices(vocabulary, k=words)) for _ in range(60)]
        left = []
        for text in right:
            parts = text.split()
            parts[draw.randrange(words)] = draw.choice(vocabulary)
            left.append(" ".join(parts))
        for threshold in (0.5, 0.8, 1.0):
            wanted = brute_force(left, right, threshold)
            pairs = {}
            for i, j, value in similar_pairs(left, right, threshold):
                pairs[i, j] = max(value, pairs.get((i, j), 0))
            assert pairs == wanted
            best = {}
            for (i, _), value in wanted.items():
                best[i] = max(value, best.get(i, 0))
            found = cross_similarities(left, right, threshold)
            assert {i: value for i, (_, value) in found.items()} == best
            assert all(wanted[i, j] == value for i, (j, value) in found.items())


def test_a_text_joined_with_its_own_list_finds_all_pairs():
    texts = ["one text here", "quite another", "one text here", "one text here"]
    found = {(i, j) for i, j, _ in similar_pairs(texts, texts, 0.8) if i < j}
    assert found == {(0, 2), (0, 3), (2, 3)}


@pytest.mark.parametrize("batch", [1 << 16, 400], ids=["one batch", "many"])
def test_among_themselves_texts_give_each_pair_once(batch, monkeypatch):
    monkeypatch.setattr(shingles, "BATCH_CHARS", batch)
    draw = random.Random(8)
    texts = [
        " ".join(draw.choices(["one", "two", "three", "four", "five"], k=5)) for _ in range(80)
    ]
    expected = {(i, j) for i, j, _ in similar_pairs(texts, texts, 0.6) if i < j}
    found = [(i, j) for i, j, _ in pairs_among(texts, 0.6)]
    assert sorted(found) == sorted(expected)
    assert len(found) > 20
    assert list(pairs_among([], 0.6)) == []


def test_similarity_of_short_and_equal_texts():
    assert similarity(char_grams("abc"), char_grams("abc")) == 1.0
    assert similarity(char_grams("abcdef"), char_grams("abcdeg")) == pytest.approx(1 / 3)


def test_nothing_in_common():
    assert cross_similarities(["one text"], ["quite another"], 0.5) == {}
    assert cross_similarities([], ["a"], 0.5) == {}


def test_the_witness_shares_the_shingles_and_the_bitmap_filter_with_minhash_and_nothing_else():
    def imported(module):
        tree = ast.parse(Path(module.__file__).read_text())
        names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        return {name for name in names if name.startswith("tuneline.data")}

    assert imported(exact_join) & imported(minhash) == {shingles.__name__, bitmaps.__name__}
    assert minhash.__name__ not in imported(exact_join)
