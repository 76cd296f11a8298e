import math
from collections import Counter

import pytest
from tests.lab.data_runs import chat, clean_rows, code, text
from tests.lab.runs import value

from tuneline.config import DataConfig
from tuneline.data.balance import class_shares
from tuneline.data.balance.class_shares import (
    caps,
    class_weights,
    edge_cases,
    effective_classes,
    reference_distance,
)
from tuneline.data.distribution_balancing import MIN_TEXTS, balance, group_count, group_prompts
from tuneline.data.tables.rows import Row
from tuneline.evaluation.holdout_performance import share_before_balancing

ITEM = "distribution_balancing"
SKEWED = ("billing",) * 12 + ("login", "login", "shipping")


def labelled(counts):
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [
        Row(f"{n:04d}", chat(f"q{n}", "a"), "f", n, label=label, split="train")
        for n, label in enumerate(labels)
    ]


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
    # A fifth and more of the rows that are left, but not of those that were divided.
    assert held.total() / (held.total() + counts.total()) > 0.19
    assert value(entry, "holdout_share") == pytest.approx(0.15, abs=0.005)
    ctx = lab.lab.context("holdout_performance")
    assert share_before_balancing(ctx, None) == (held.total(), 450)


def test_weights_above_their_limit_fail(data_lab, monkeypatch):
    monkeypatch.setattr(class_shares, "class_weights", lambda *given: {"shipping": 4.0})
    lab = data_lab(clean_rows(450, SKEWED))
    assert value(lab.upto(ITEM), "largest_weight") == 4
    lab.agree(ITEM, "fail")


def with_long_rows():
    rows = clean_rows(150)
    for n in range(0, 60, 4):
        rows[n]["messages"][0]["content"] += " " + text(n + 900, 60)
    return rows


EVEN = {"billing": 1.0, "login": 1.0, "shipping": 1.0}


@pytest.mark.parametrize(
    ("rows", "settings", "verdict", "words"),
    [
        (clean_rows(150, SKEWED), {"min_rows_per_class": 30}, "warn", "smallest_class"),
        (clean_rows(120), {"reference_shares": EVEN}, "pass", ""),
        (clean_rows(120), {"reference_shares": {**EVEN, "billing": 8.0}}, "warn", "reference_dis"),
        (with_long_rows(), {}, "pass", ""),
        (with_long_rows(), {"edge_case_share": [0.2, 0.5]}, "warn", "edge_case_share"),
        (with_long_rows(), {"edge_case_share": [0.05, 0.2]}, "pass", ""),
    ],
)
def test_limits_turn_step_and_gate(data_lab, rows, settings, verdict, words):
    lab = data_lab(rows, **settings)
    entry = lab.upto(ITEM)
    assert words in lab.agree(ITEM, verdict).summary
    if len(rows) == 150 and "min_rows_per_class" not in settings:
        assert 5 < value(entry, "edge_cases_long") <= 15


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
        pick = words.split()
        for n in range(count):
            asked = " ".join(pick[(n * 3 + k * (n % 5 + 1)) % len(pick)] for k in range(7))
            question = f"{asked} {n * 7919:x} {(number * 1000 + n) * 104729:x}"
            rows.append({"messages": chat(question, f"Noted {n * 31:x} for {number} of {n}.")})
    return rows


PARCELS = "parcel courier delivery tracking depot doorstep van address shipment late arrived"
MONEY = "invoice refund charge receipt bank payment card billing amount debit statement"
LOGIN = "password login username email reset locked browser session token account signin"


def test_rows_without_classes_are_put_into_groups(data_lab):
    lab = data_lab(subjects({PARCELS: 200, MONEY: 200, LOGIN: 200}), label_field=None)
    lab.upto(ITEM)
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


def test_a_few_rows_without_classes(data_lab):
    lab = data_lab(clean_rows(120), label_field=None)
    entry = lab.upto(ITEM)
    assert entry.verdict == "not_applicable"
    assert len(lab.table(ITEM, "dataset.parquet")) == 120
    gate = lab.gate(ITEM)
    assert (gate.verdict, gate.agrees) == ("pass", True)


def test_a_cap_on_training_rows_leaves_the_holdout_whole(data_lab):
    lab = data_lab(clean_rows(240), max_train_rows=90, max_holdout_rows=500)
    entry = lab.upto(ITEM)
    splits = Counter(r["split"] for r in lab.table(ITEM, "dataset.parquet"))
    assert splits == {"train": 90, "holdout": 36, "validation": 12}
    assert value(entry, "holdout_share") == 0.15
    caps = {"train_cap", "validation_cap"}
    assert {code(r) for r in lab.rejected(ITEM)} == caps
    assert lab.gate(ITEM).verdict == "pass"
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


SUBJECTS = {
    "parcel": "parcel courier delivery tracking depot doorstep van address shipment".split(),
    "money": "invoice refund charge receipt bank payment card billing amount".split(),
}


def texts(count):
    made = []
    for n in range(count):
        words = SUBJECTS["parcel" if n % 4 else "money"]
        made.append(" ".join(words[(n + k * (1 + n % 7)) % 9] for k in range(6)) + f" {n:x}")
    return made


def test_groups_follow_the_subjects():
    given = texts(400)
    names, distances = group_prompts(given)
    subjects = {}
    for n, name in enumerate(names):
        subjects.setdefault(name, Counter())["parcel" if n % 4 else "money"] += 1
    pure = sum(max(counts.values()) for counts in subjects.values()) / len(given)
    assert pure > 0.98
    assert len(subjects) >= 2
    assert all(any(w in name for words in SUBJECTS.values() for w in words) for name in subjects)
    assert all(0 <= distance <= 2 for distance in distances)


def test_neither_order_nor_repeats_change_a_group():
    given = texts(300)
    forward, backward, doubled = (
        dict(zip(some, group_prompts(some)[0], strict=True))
        for some in (given, given[::-1], given * 2)
    )
    assert forward == backward == doubled


def test_few_texts_or_no_words_in_common_make_no_groups():
    assert group_prompts(texts(MIN_TEXTS - 1)) is None
    assert group_prompts([f"{n:x}{n * 7:x}" for n in range(MIN_TEXTS)]) is None
    assert group_prompts([]) is None


def test_how_many_groups():
    assert [group_count(n) for n in (1, 200, 2_000, 20_000, 10**6)] == [2, 3, 10, 31, 50]


def test_effective_classes_weights_and_distances():
    assert effective_classes({"a": 1, "b": 1}) == pytest.approx(2)
    assert effective_classes({"a": 1, "b": 0}) == pytest.approx(1)
    assert effective_classes({}) == 0
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert effective_classes({"a": 0.9, "b": 0.1}) == pytest.approx(math.exp(entropy))
    assert class_weights({"a": 40, "b": 10, "c": 1}, 3) == {"a": 1, "b": 1, "c": 3}
    assert reference_distance({"a": 2, "b": 2}, {"a": 1, "b": 1}) == 0
    assert reference_distance({"a": 1}, {"b": 1}) == 1


def test_caps():
    assert caps({"a": 100, "b": 10, "c": 8}, 4, None) == {"a": 40, "b": 10, "c": 8}
    assert caps({"a": 100, "b": 10, "c": 8}, 4, 30) == {"a": 12, "b": 10, "c": 8}
    assert sum(caps({"a": 7, "b": 7, "c": 7}, 4, 20).values()) == 20
    assert caps({}, 4, 10) == {}
    tail = {f"typo {n}": 1 for n in range(20)}
    assert caps({"a": 90, "b": 30, **tail}, 4, None, least=8)["a"] == 90


def test_edge_cases_are_rare_long_or_far_out():
    classes = ["a"] * 40 + ["b"] * 40 + ["c"] * 5
    tokens = [100 + n % 20 for n in range(85)]
    tokens[3] = 300
    distances = [0.3 + 0.01 * (n % 10) for n in range(85)]
    distances[50] = 0.9
    found = edge_cases(classes, tokens, distances, least=8)
    assert found[80:] == ["rare_class"] * 5
    assert {n: why for n, why in enumerate(found[:80]) if why} == {3: "long", 50: "unusual"}
    assert edge_cases(classes, tokens, None, least=8)[50] is None


def test_rows_of_about_a_length_are_no_edge_cases():
    assert edge_cases(["a"] * 20, [50] * 18 + [51, 80], None, least=8) == [None] * 20
    assert edge_cases(["a"], [50], None, least=8) == [None]
    assert edge_cases([], [], None, least=8) == []
