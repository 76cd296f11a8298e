"""Rows with names, each with a near-twin, through the data phase: one of two stays."""

import random
from copy import deepcopy

import pytest
from benchmarks.faults.guests.shapes import guest
from benchmarks.faults.guests.words import FIRST, LAST, TOWNS
from tests.lab.data_runs import DataLab

from tuneline.artifacts.data import DATASET
from tuneline.data.near_duplicates.shingles import char_grams, normalise, word_grams

SHAPES = {"intent": "intent", "extraction": None, "several_turns": None, "sentiment": "sentiment"}
SETTINGS = {"pii_ner": True, "pii_profile": ["gdpr"]}


def mistyped(text, keep, draw):
    """Two letters of a word change places; what the answer has stays."""
    words = [w for w in text.split() if w.isalpha() and len(w) > 3 and w.casefold() not in keep]
    word = draw.choice(words)
    at = draw.randrange(len(word) - 2)
    return text.replace(word, word[:at] + word[at + 1] + word[at] + word[at + 2 :], 1)


def reordered(text, keep, draw):
    words = text.split(" ")
    at = draw.randrange(len(words) - 1)
    words[at : at + 2] = reversed(words[at : at + 2])
    return " ".join(words)


def pointed(text, keep, draw):
    return draw.choice((text.replace(",", "").replace(". ", " "), f"{text}!!", f"... {text} ?"))


def recased(text, keep, draw):
    return draw.choice((text.lower(), text.upper()))


def is_near(one, other):
    grams = word_grams if len(one) > 400 else char_grams
    a, b = (grams(normalise(text)) for text in (one, other))
    return len(a & b) >= 0.82 * len(a | b)


def with_twins(shape, pairs, seed=1):
    """Return the rows of a shape, a name in each last question, and after each its twin."""
    draw, rows = random.Random(seed), []
    for row in guest(shape, seed, pairs).rows:
        asked = [turn for turn in row["messages"] if turn["role"] == "user"]
        name = f"{draw.choice(FIRST)} {draw.choice(LAST)}"
        asked[-1]["content"] += f" Kind regards, {name} from {draw.choice(TOWNS)}"
        twin = deepcopy(row)
        turn = [turn for turn in twin["messages"] if turn["role"] == "user"][-1]
        keep = row["messages"][-1]["content"].casefold()
        changes = [mistyped, reordered, pointed, recased]
        draw.shuffle(changes)
        texts = [change(turn["content"], keep, draw) for change in changes]
        turn["content"] = next(text for text in texts if is_near(turn["content"], text))
        rows += [row, twin]
    return rows


@pytest.mark.parametrize(
    "shape",
    [
        name if name == "extraction" else pytest.param(name, marks=pytest.mark.long)
        for name in SHAPES
    ],
)
def test_twins_are_found_and_never_parted(shape, tmp_path, base_dir):
    rows = with_twins(shape, 40)
    lab = DataLab(tmp_path, base_dir, rows, **SETTINGS, label_field=SHAPES[shape])
    lab.upto("distribution_balancing")
    lines = {row["source_line"] for row in lab.table(DATASET.step, DATASET.name)}
    pairs = [{n, n + 1} & lines for n in range(1, len(rows), 2)]
    assert max(map(len, pairs)) == 1
    assert sum(map(len, pairs)) >= 36
