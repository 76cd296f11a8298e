"""Hold-out rows that training rows paraphrase are found beyond what the task itself explains.

The paraphrases are written by hand; no rule of the detector made them.
"""

import random

import pytest
from tests.lab.runs import broken

from tuneline.config.evaluation import ParaphrasesConfig
from tuneline.data.tables.rows import Row
from tuneline.evaluation.holdout.leakage import near_duplicates
from tuneline.evaluation.holdout.paraphrases import (
    find_paraphrases,
    paraphrase_measurements,
    without_paraphrases,
)

CONFIG = ParaphrasesConfig()
# A question, and what a person would write to say the same.
PAIRS = [
    ("My parcel has been stuck in Leipzig since Monday.", "Since Monday my parcel is stuck in "
     "Leipzig, why?"),
    ("I was billed twice for the yoga mat in March.", "In March you billed me two times for the "
     "same yoga mat"),
    ("The password reset mail for anna never arrives.", "I never get the mail to reset the "
     "password of anna"),
    ("Can I change the delivery address to my office in Graz?", "I want to change my delivery "
     "address, it should be the office in Graz"),
    ("The coffee grinder arrived with a broken lid.", "the lid of the coffee grinder was broken "
     "when it arrived"),
    ("How do I cancel the newsletter about garden tools?", "I would like to cancel your garden "
     "tools newsletter"),
    ("The discount code SPRING does not work for lamps.", "For lamps the code SPRING gives no "
     "discount"),
    ("Two chairs are missing from my furniture order.", "my furniture order came and two chairs "
     "were missing"),
    ("I need the invoice for the drill as a PDF.", "please send a PDF invoice for the drill"),
    ("The app closes when I open my wish list.", "When opening my wish list the app just closes"),
    ("Why is express shipping to Malta so expensive?", "express shipping to Malta is so "
     "expensive, why is that"),
    ("My gift card shows a balance of zero.", "the balance of my gift card is shown as zero"),
]  # fmt: skip
SUBJECTS = "lamp kettle bicycle mattress printer tent jacket keyboard mirror blender".split()
FAULTS = (
    "is scratched|makes a noise|is too small|has no manual|smells odd|came without screws|"
    "was sent to Oslo|costs more than shown|can not be assembled|leaks"
).split("|")
PLACES = "in the kitchen|at my mother's|on the balcony|since Tuesday|after a week|again".split("|")


def row(row_id, text, split, label="help"):
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
    return Row(row_id, turns, "rows.jsonl", 1, label=label, split=split)


def ordinary(count, seed=3):
    """Questions that share words as customers' questions do."""
    draw = random.Random(seed)
    whole = [f"The {s} {f} {p}." for s in SUBJECTS for f in FAULTS for p in PLACES]
    return draw.sample(whole, count)


@pytest.fixture(scope="module")
def split():
    """Training rows and hold-out rows of one kind: what training rows resemble each other."""
    texts = ordinary(360)
    trained = [row(f"t{n}", text, "train") for n, text in enumerate(texts[:300])]
    held = [row(f"h{n}", text, "holdout") for n, text in enumerate(texts[300:])]
    return held, trained


def test_rows_that_resemble_each_other_as_training_rows_do_are_no_fault(split):
    found = find_paraphrases(*split)
    measurements = paraphrase_measurements(found, CONFIG)
    assert broken(measurements) == set()
    assert (found.compared, found.ordinary) == (60, 300)


def test_paraphrases_of_the_holdout_in_training_are_found_and_warn():
    """The dataset's own questions have little in common, so that a paraphrase stands out."""
    draw = random.Random(9)
    words = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in ("rt", "lk", "sp", "nd")]
    texts = [" ".join(draw.sample(words, 8)) for _ in range(200)]
    trained = [row(f"t{n}", text, "train") for n, text in enumerate(texts[:160])]
    held = [row(f"h{n}", text, "holdout") for n, text in enumerate(texts[160:])]
    clean = paraphrase_measurements(find_paraphrases(held, trained), CONFIG)
    assert broken(clean) == set()
    held += [row(f"p{n}", text, "holdout") for n, (text, _) in enumerate(PAIRS)]
    trained += [row(f"q{n}", other, "train") for n, (_, other) in enumerate(PAIRS)]
    found = find_paraphrases(held, trained)
    assert near_duplicates(held, trained, 0.8) == []
    pairs = {pair.row_id: pair.other_id for pair in found.pairs}
    caught = {n for n in range(len(PAIRS)) if pairs.get(f"p{n}") == f"q{n}"}
    assert len(caught) >= 11
    measurements = paraphrase_measurements(found, CONFIG)
    assert broken(measurements) == {"paraphrase_excess_lower"}
    assert {m.on_breach for m in measurements if m.ok is False} == {"warn"}
    failing = ParaphrasesConfig(on_excess="fail")
    [limit] = [m for m in paraphrase_measurements(found, failing) if m.ok is False]
    assert limit.on_breach == "fail"
    best = found.pairs[0]
    assert best.text != best.other_text
    assert best.similarity > found.threshold


def test_a_paraphrase_of_another_label_is_none(split):
    held, trained = split
    text, other = PAIRS[0]
    held = [*held, row("p", text, "holdout", "billing")]
    trained = [*trained, row("q", other, "train", "shipping")]
    assert "p" not in {pair.row_id for pair in find_paraphrases(held, trained).pairs}


def test_the_metric_without_them_is_stated(split):
    held, trained = split
    found = find_paraphrases(
        [*held, row("p", trained[0].messages[0]["content"], "holdout")], trained
    )
    like = {pair.row_id for pair in found.pairs}
    assert "p" in like
    rows = [*held, row("p", "x", "holdout")]
    scores = [float(each.row_id in like) for each in rows]
    [stated] = without_paraphrases(found, rows, scores)
    assert stated.value == 0.0


def test_few_training_rows_give_no_threshold_and_this_is_said():
    rows = [row(f"t{n}", text, "train") for n, text in enumerate(ordinary(20))]
    found = find_paraphrases([row("h", "x", "holdout")], rows)
    [stated] = paraphrase_measurements(found, CONFIG)
    assert stated.value == "not judged: fewer than 40 training rows to compare with"
