"""Shingles of whole batches are what the definition gives for each text."""

import random
import re

import numpy as np
import pytest

from tuneline.data.near_duplicates import shingles
from tuneline.data.near_duplicates.shingles import (
    batches,
    char_grams,
    normalise,
    shingle_chars,
    shingle_words,
    word_grams,
)

ALPHABETS = ["abcXYZ019 _-.,!\n\t'", "abcÄöß é你好İ \u00a0_x ", "😀ab ", " .-"]


def texts_of(seed, count=300):
    draw = random.Random(seed)
    texts = [
        "".join(draw.choices(draw.choice(ALPHABETS), k=draw.choice([0, 1, 3, 4, 5, 6, 20, 200])))
        for _ in range(count)
    ]
    return [*texts, "", "a", "ab cd", "你好", "one two three", "\x00\x7f", "a\ud800b"]


def reference(text):
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def test_normalise():
    assert normalise("  Hello,\tWORLD_1 — straße! ") == "hello world 1 strasse"
    for seed in range(5):
        assert all(normalise(text) == reference(text) for text in texts_of(seed))
        assert all(normalise(normalise(text)) == normalise(text) for text in texts_of(seed))


@pytest.mark.parametrize(
    ("shingle", "grams"), [(shingle_chars, char_grams), (shingle_words, word_grams)]
)
def test_equal_shingles_have_equal_hashes_and_others_have_not(shingle, grams):
    texts = texts_of(7, count=60)
    shingled = shingle(texts)
    hash_of: dict[str, int] = {}
    for index, text in enumerate(texts):
        expected = grams(normalise(text))
        found = shingled.of(index)
        assert len(found) == len(expected)
        assert np.all(np.diff(found.astype(object)) > 0)
        # Alone, a text of ASCII takes another path than in this mixed batch.
        alone = shingle([text]).of(0)
        assert np.array_equal(alone, found)
        # A gram that begins or ends with a space can't stand alone.
        for gram in (g for g in expected if g == normalise(g)):
            value = int(shingle([gram]).of(0)[0])
            assert value in found
            assert hash_of.setdefault(gram, value) == value
    assert len(set(hash_of.values())) == len(hash_of)


def test_batches_hold_every_text_once(monkeypatch):
    monkeypatch.setattr(shingles, "BATCH_CHARS", 50)
    texts = ["x" * n for n in (0, 10, 60, 49, 2, 0, 50, 51)]
    cut = list(batches(texts))
    assert [text for part in cut for text in texts[part]] == texts
    assert len(cut) > 4
    assert list(batches([])) == []


def test_grams_of_short_texts():
    assert char_grams("abc") == {"abc"}
    assert char_grams("abcdef") == {"abcde", "bcdef"}
    assert word_grams("a b") == {"a b"}
    assert word_grams("a b c d") == {"a b c", "b c d"}
