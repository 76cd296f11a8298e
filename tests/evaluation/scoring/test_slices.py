"""A part of the hold-out that collapsed is named, and chance is not taken for one."""

import random
from statistics import mean

import pyarrow.parquet as pq
import pytest
from tests.evaluation.conftest import SPLITS
from tests.lab.runs import broken, values
from tests.lab.tiny_task import task_rows

from tuneline.config.evaluation import SlicesConfig
from tuneline.data.tables.rows import Row
from tuneline.evaluation.scoring.slices import find_slices, slice_measurements, slice_sentence
from tuneline.evidence import conclude

CONFIG = SlicesConfig()


def row(number, label, text="where is my parcel", source="rows.jsonl"):
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "{}"}]
    return Row(f"row-{number}", turns, source, number + 1, label=label, split="holdout")


def rows_of(labels):
    return [row(number, label) for number, label in enumerate(labels)]


def test_a_class_that_collapsed_is_named_though_the_total_is_high():
    labels = [f"intent-{number % 10}" for number in range(400)]
    right = [label != "intent-7" for label in labels]
    found = find_slices(rows_of(labels), right, CONFIG)
    assert mean(right) == pytest.approx(0.9)
    assert [(each.kind, each.value, each.rows) for each in found.worse] == [
        ("label", "intent-7", 40)
    ]
    [worst] = found.worse
    assert (worst.mean, worst.rest) == (0.0, 1.0)
    for profile, verdict in (("laptop", "warn"), ("production", "fail")):
        measurements = slice_measurements(found, profile)
        assert broken(measurements) == {"slices_clearly_worse"}
        assert conclude(measurements) == verdict
    assert "label intent-7: 0.00 on 40 rows" in slice_sentence(found)
    # A class whose rows ask the same has one row, which is too few.
    together = [400 if label == "intent-7" else n for n, label in enumerate(labels)]
    assert find_slices(rows_of(labels), right, CONFIG, together).worse == []


def test_other_kinds_of_parts_are_compared_too():
    long, german = "a very long question about my parcel and the " * 9, "warum ist meine Karte weg"
    texts = (long, german, "where is my card", "where is my card")
    sources = ["b.csv" if n < 30 else "a.csv" for n in range(200)]
    rows = [row(n, "same", texts[n % 4], source) for n, source in enumerate(sources)]
    found = find_slices(rows, [n % 4 != 1 for n in range(200)], CONFIG)
    assert found.kinds_alike == ("label",)
    assert ("language", "de") in {(each.kind, each.value) for each in found.worse}
    assert {each.kind for each in found.judged} == {"prompt length", "language", "source"}
    by_source = find_slices(rows, [n >= 30 for n in range(200)], CONFIG)
    assert [(w.kind, w.value) for w in by_source.worse] == [("source", "b.csv")]


def test_parts_that_can_not_be_judged_are_said():
    labels = ["big"] * 50 + ["rare"] * 3
    found = find_slices(rows_of(labels), [True] * 50 + [False] * 3, CONFIG)
    assert [(each.value, each.mean) for each in found.not_judged] == [("rare", 0.0)]
    stated = {m.name: m.value for m in slice_measurements(found, "laptop")}
    assert stated["slices_too_small_to_judge"] == 1
    assert found.worse == []
    alike = find_slices(rows_of(["one"] * 30), [True] * 30, CONFIG)
    assert alike.kinds_alike == ("label", "prompt length", "language", "source")
    assert "no part of it has enough rows" in slice_sentence(alike)


@pytest.mark.parametrize("fractional", [False, True])
def test_chance_is_rarely_taken_for_a_worse_part(fractional):
    draw, alarms = random.Random(5), 0
    labels = [f"intent-{number % 20}" for number in range(300)]
    for _ in range(200):
        scores = [
            draw.choice((0.0, 0.4, 0.9, 1.0)) if fractional else float(draw.random() < 0.7)
            for _ in labels
        ]
        alarms += bool(find_slices(rows_of(labels), scores, CONFIG).worse)
    # 2 % at most in theory; 9 of 200 would be seen once in 100 times at 2 %.
    assert alarms <= 9


def test_a_difference_that_does_not_matter_is_none():
    labels = ["a"] * 3000 + ["b"] * 3000
    right = [n % 100 < 97 for n in range(3000)] + [n % 100 < 92 for n in range(3000)]
    found = find_slices(rows_of(labels), right, CONFIG)
    assert found.judged[0].corrected < 1e-6
    assert found.worse == []
    assert [w.value for w in find_slices(rows_of(labels), right, SlicesConfig(worse_by=0.04)).worse]


def test_the_step_names_a_class_that_collapsed(scored_lab):
    """The keywords of one class are swapped in its questions' labels, which no model can know."""
    rows = task_rows(SPLITS)
    for held in rows:
        if held["split"] == "holdout" and held["label"] == "login":
            text = held["messages"][1]["content"]
            held["messages"][1]["content"] = text.replace("password", "invoice")
    bench = scored_lab(rows=rows, evaluation={"slices": {"worse_by": 0.1}})
    evidence = bench.execute("holdout_performance")
    assert (evidence.verdict, broken(evidence)) == ("warn", {"slices_clearly_worse"})
    found = values(evidence)
    assert "clearly worse than the rest: label login" in evidence.summary
    document = bench.document("holdout_performance", "slices.json")
    assert document["correction"].startswith("Holm")
    worst = document["judged"][0]
    assert worst["value"] == "login"
    table = pq.read_table(bench.artifact("holdout_performance", "answers.parquet")).to_pylist()
    of_class = [line["tuned_score"] for line in table if line["label"] == "login"]
    assert mean(of_class) == pytest.approx(worst["mean"], abs=1e-4)
    for who in ("tuned", "base"):
        scored = mean(line[f"{who}_score"] for line in table)
        assert scored == pytest.approx(found[f"{who}_metric"], abs=1e-4)
