import random
from itertools import product

import pytest

from tuneline.data.near_duplicates import exact_join as leakage
from tuneline.data.near_duplicates.exact_join import char_grams, cross_similarities, word_grams
from tuneline.data.near_duplicates.shingles import LONG, SHORT


def brute(left, right, threshold):
    found = {}
    for (i, a), (_, b) in product(enumerate(left), enumerate(right)):
        for grams, fits in (
            (char_grams, lambda t: len(t) <= SHORT),
            (word_grams, lambda t: len(t) > LONG),
        ):
            if fits(a) and fits(b):
                x, y = grams(a), grams(b)
                similarity = len(x & y) / len(x | y)
                if similarity >= threshold:
                    found[i] = max(similarity, found.get(i, 0))
    return found


@pytest.mark.parametrize("held", [1 << 22, 40], ids=["at once", "in parts"])
def test_finds_what_comparing_all_pairs_finds(held, monkeypatch):
    monkeypatch.setattr(leakage, "_HELD_MATCHES", held)
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
            found = cross_similarities(left, right, threshold)
            assert {i: s for i, (_, s) in found.items()} == brute(left, right, threshold)


def test_nothing_in_common():
    assert cross_similarities(["one text"], ["quite another"], 0.5) == {}
    assert cross_similarities([], ["a"], 0.5) == {}
