import math
from collections import Counter

import pytest
from tests.data.data_lab import clean_rows, code, value

from tuneline.config import DataConfig
from tuneline.data.distribution_balancing import (
    balance,
    caps,
    class_weights,
    effective_classes,
    reference_distance,
)
from tuneline.data.tables import Row

ITEM = "distribution_balancing"
SKEWED = ("billing",) * 12 + ("login", "login", "shipping")


def labelled(counts, split="train"):
    rows = []
    for label, count in counts.items():
        for _ in range(count):
            number = len(rows)
            turns = [
                {"role": "user", "content": f"q{number}"},
                {"role": "assistant", "content": "a"},
            ]
            rows.append(Row(f"{number:04d}", turns, "f", number, label=label, split=split))
    return rows


def test_balanced_rows_stay(data_lab):
    lab = data_lab(clean_rows(120))
    entry = lab.upto(ITEM)
    assert entry.verdict == "pass"
    dataset = lab.table(ITEM, "dataset.parquet")
    assert list(dataset[0]) == [
        "row_id",
        "messages",
        "split",
        "label",
        "weight",
        "n_tokens",
        "source_file",
        "source_line",
    ]
    assert len(dataset) == 120
    assert {r["weight"] for r in dataset} == {1.0}
    assert value(entry, "effective_classes") == pytest.approx(3, abs=0.01)
    assert value(entry, "reference") == "none"
    assert "no reference shares were declared" in entry.summary
    assert lab.gate(ITEM).verdict == "pass"


def test_skewed_classes_are_capped_and_weighted(data_lab):
    lab = data_lab(clean_rows(450, SKEWED))
    entry = lab.upto(ITEM)
    train = [r for r in lab.table(ITEM, "dataset.parquet") if r["split"] == "train"]
    counts = Counter(r["label"] for r in train)
    assert counts["billing"] == 4 * counts["login"]
    weights = {r["label"]: r["weight"] for r in train}
    assert weights["billing"] == weights["login"] == 1
    assert 1.9 < weights["shipping"] < 2.2
    assert len({r["row_id"] for r in train}) == len(train), "no row is copied"
    assert {code(r) for r in lab.rejected(ITEM)} == {"sampled_down"}
    assert value(entry, "effective_classes") > value(entry, "effective_classes_before")
    held = Counter(
        r["label"] for r in lab.table(ITEM, "dataset.parquet") if r["split"] == "holdout"
    )
    assert held["billing"] > 4 * held["login"], "the hold-out keeps the shares it has"
    assert lab.gate(ITEM).verdict == "pass"


def test_too_few_rows_of_a_class_warn_in_step_and_gate(data_lab):
    lab = data_lab(clean_rows(150, SKEWED), min_rows_per_class=30)
    assert lab.upto(ITEM).verdict == "warn"
    gate = lab.gate(ITEM)
    assert (gate.verdict, gate.agrees) == ("warn", True)
    assert "smallest_class" in gate.summary


def test_declared_shares_are_held_against_the_rows(data_lab):
    good = {"billing": 1.0, "login": 1.0, "shipping": 1.0}
    lab = data_lab(clean_rows(120), reference_shares=good)
    assert lab.upto(ITEM).verdict == "pass"
    assert lab.gate(ITEM).verdict == "pass"
    lab = data_lab(clean_rows(120), reference_shares={**good, "billing": 8.0})
    assert lab.upto(ITEM).verdict == "warn"
    assert lab.gate(ITEM).verdict == "warn"


def test_rows_without_classes(data_lab):
    lab = data_lab(clean_rows(120), label_field=None)
    entry = lab.upto(ITEM)
    assert entry.verdict == "not_applicable"
    assert len(lab.table(ITEM, "dataset.parquet")) == 120
    gate = lab.gate(ITEM)
    assert (gate.verdict, gate.agrees) == ("pass", True)


def test_a_capped_training_set_keeps_the_shares(data_lab):
    lab = data_lab(clean_rows(240), max_train_rows=90, max_holdout_rows=500)
    entry = lab.upto(ITEM)
    splits = Counter(r["split"] for r in lab.table(ITEM, "dataset.parquet"))
    assert splits == {"train": 90, "holdout": 18, "validation": 12}
    assert value(entry, "holdout_share") == 0.15
    assert {code(r) for r in lab.rejected(ITEM)} == {
        "sampled_down",
        "holdout_cap",
        "validation_cap",
    }
    gate = lab.gate(ITEM)
    assert gate.verdict == "pass", gate.summary


def test_max_holdout_rows(data_lab):
    lab = data_lab(clean_rows(120), max_holdout_rows=6)
    lab.upto(ITEM)
    held = [r for r in lab.table(ITEM, "dataset.parquet") if r["split"] == "holdout"]
    assert Counter(r["label"] for r in held) == {"billing": 2, "login": 2, "shipping": 2}


def test_effective_classes():
    assert effective_classes({"a": 1, "b": 1}) == pytest.approx(2)
    assert effective_classes({"a": 1, "b": 0}) == pytest.approx(1)
    assert effective_classes({}) == 0
    shares = {"a": 0.9, "b": 0.1}
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert effective_classes(shares) == pytest.approx(math.exp(entropy))


def test_caps():
    assert caps({"a": 100, "b": 10, "c": 8}, 4, None) == {"a": 40, "b": 10, "c": 8}
    assert caps({"a": 100, "b": 10, "c": 8}, 4, 30) == {"a": 12, "b": 10, "c": 8}
    assert sum(caps({"a": 7, "b": 7, "c": 7}, 4, 20).values()) == 20
    assert caps({}, 4, 10) == {}
    tail = {f"typo {n}": 1 for n in range(20)}
    assert caps({"a": 90, "b": 30, **tail}, 4, None, least=8)["a"] == 90


def test_weights_are_bounded():
    assert class_weights({"a": 40, "b": 10, "c": 1}, 3) == {"a": 1, "b": 1, "c": 3}


def test_reference_distance():
    assert reference_distance({"a": 2, "b": 2}, {"a": 1, "b": 1}) == 0
    assert reference_distance({"a": 1}, {"b": 1}) == 1


def test_order_of_rows_does_not_matter():
    rows = labelled({"a": 90, "b": 9, "c": 10})
    config = DataConfig(source="f", max_train_rows=40)

    def kept(rows):
        reasons, _ = balance(rows, config)
        return {r.row_id for r, why in zip(rows, reasons, strict=True) if why is None}

    assert kept(rows) == kept(rows[::-1])
    assert len(kept(rows)) == 40
