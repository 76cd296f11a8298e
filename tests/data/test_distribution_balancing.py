from collections import Counter

import pytest
from tests.lab.data_runs import clean_rows, code, text
from tests.lab.runs import value

from tuneline.config import DataConfig
from tuneline.data.distribution_balancing import balance
from tuneline.data.tables.rows import Row

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
    dataset = lab.table(ITEM, "dataset.parquet")
    assert len(dataset) == 120
    assert {r["weight"] for r in dataset} == {1.0}
    assert value(entry, "effective_classes") == pytest.approx(3, abs=0.01)
    assert value(entry, "reference") == "none"
    assert "no reference shares were declared" in entry.summary
    lab.agree(ITEM, "pass")


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
    lab.upto(ITEM)
    gate = lab.agree(ITEM, "warn")
    assert "smallest_class" in gate.summary


def test_the_rows_are_compared_with_declared_shares(data_lab):
    good = {"billing": 1.0, "login": 1.0, "shipping": 1.0}
    lab = data_lab(clean_rows(120), reference_shares=good)
    lab.upto(ITEM)
    lab.agree(ITEM, "pass")
    lab = data_lab(clean_rows(120), reference_shares={**good, "billing": 8.0})
    lab.upto(ITEM)
    lab.agree(ITEM, "warn")


def test_one_class_with_most_rows_and_no_cap_warns(data_lab):
    labels = ("billing",) * 6 + ("login", "shipping", "returns", "stock")
    lab = data_lab(clean_rows(400, labels), balancing="report")
    entry = lab.upto(ITEM)
    assert value(entry, "largest_over_typical") == pytest.approx(6, abs=0.5)
    assert value(entry, "largest_share") == pytest.approx(0.6, abs=0.02)
    assert lab.rejected(ITEM) == []
    assert {r["weight"] for r in lab.table(ITEM, "dataset.parquet")} == {1.0}
    gate = lab.agree(ITEM, "warn")
    assert "largest_over_typical" in gate.summary
    # With the cap the same rows pass.
    lab = data_lab(clean_rows(400, labels))
    lab.upto(ITEM)
    lab.agree(ITEM, "pass")


def test_sampling_and_weights_one_by_one():
    rows = labelled({"a": 90, "b": 10, "c": 10, "d": 4})

    def outcome(balancing):
        reasons, weights = balance(rows, DataConfig(source="f", balancing=balancing))
        return sum(reason is not None for reason in reasons), max(weights)

    assert outcome("both") == (50, 2.5)
    assert outcome("sample") == (50, 1.0)
    assert outcome("weigh") == (0, 2.5)
    assert outcome("report") == (0, 1.0)


def subjects(counts):
    """Rows about subjects that have no class."""
    rows = []
    for number, (words, count) in enumerate(counts.items()):
        for n in range(count):
            row = clean_rows(1)[0]
            pick = words.split()
            asked = " ".join(pick[(n * 3 + k * (n % 5 + 1)) % len(pick)] for k in range(7))
            question = f"{asked} {n * 7919:x} {(number * 1000 + n) * 104729:x}"
            row["messages"][0]["content"] = question
            row["messages"][1]["content"] = f"Noted {n * 31:x} for {number} of {n}."
            rows.append(row)
    return rows


PARCELS = "parcel courier delivery tracking depot doorstep van address shipment late arrived"
MONEY = "invoice refund charge receipt bank payment card billing amount debit statement"
LOGIN = "password login username email reset locked browser session token account signin"


def test_rows_without_classes_are_put_into_groups(data_lab):
    lab = data_lab(subjects({PARCELS: 200, MONEY: 200, LOGIN: 200}), label_field=None)
    entry = lab.upto(ITEM)
    assert value(entry, "classes_from") == "groups of prompts"
    assert lab.rejected(ITEM) == []
    audit = lab.table(ITEM, "audit.parquet")
    names = " ".join({r["group"] for r in audit})
    assert any(word in names for word in PARCELS.split())
    assert any(word in names for word in MONEY.split())
    assert {r["weight"] for r in lab.table(ITEM, "dataset.parquet")} == {1.0}
    assert {r["label"] for r in lab.table(ITEM, "dataset.parquet")} == {None}
    lab.agree(ITEM, "pass")


def test_groups_are_balanced_where_that_is_asked_for(data_lab):
    rows = subjects({PARCELS: 500, MONEY: 60, LOGIN: 40})
    lab = data_lab(rows, label_field=None, unlabelled="balance", max_class_ratio=1.5)
    lab.upto(ITEM)
    assert {code(r) for r in lab.rejected(ITEM)} == {"sampled_down"}
    assert max(r["weight"] for r in lab.table(ITEM, "dataset.parquet")) > 1
    assert lab.gate(ITEM).agrees


def test_the_share_of_edge_cases_is_compared_with_the_declared_one(data_lab):
    rows = clean_rows(150)
    for n in range(0, 60, 4):
        rows[n]["messages"][0]["content"] += " " + text(n + 900, 60)
    lab = data_lab(rows)
    entry = lab.upto(ITEM)
    assert 5 < value(entry, "edge_cases_long") <= 15
    assert entry.verdict == "pass"
    lab = data_lab(rows, edge_case_share=[0.2, 0.5])
    lab.upto(ITEM)
    gate = lab.agree(ITEM, "warn")
    assert "edge_case_share" in gate.summary
    lab = data_lab(rows, edge_case_share=[0.05, 0.2])
    lab.upto(ITEM)
    lab.agree(ITEM, "pass")


def test_a_few_rows_without_classes(data_lab):
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
    assert {code(r) for r in lab.rejected(ITEM)} == {"train_cap", "holdout_cap", "validation_cap"}
    gate = lab.gate(ITEM)
    assert gate.verdict == "pass", gate.summary


def test_max_holdout_rows(data_lab):
    lab = data_lab(clean_rows(120), max_holdout_rows=6)
    lab.upto(ITEM)
    held = [r for r in lab.table(ITEM, "dataset.parquet") if r["split"] == "holdout"]
    assert Counter(r["label"] for r in held) == {"billing": 2, "login": 2, "shipping": 2}


def test_order_of_rows_does_not_matter():
    rows = labelled({"a": 90, "b": 9, "c": 10})
    config = DataConfig(source="f", max_train_rows=40)

    def kept(rows):
        reasons, _ = balance(rows, config)
        return {r.row_id for r, why in zip(rows, reasons, strict=True) if why is None}

    assert kept(rows) == kept(rows[::-1])
    assert len(kept(rows)) == 40
