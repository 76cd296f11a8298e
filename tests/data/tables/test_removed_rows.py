import json
import random

import pytest
from tests.lab.data_runs import WORDS, answer, chat, clean_rows, text
from tests.lab.runs import value

from tuneline.catalogue import DATA_ORDER
from tuneline.config import DataConfig
from tuneline.data.tables.removed_rows import REMOVED, levels_of


def removed(lab, item):
    return json.loads(lab.lab.artifact(item, REMOVED).read_text())


def ok(entry, name):
    return next(m.ok for m in entry.measurements if m.name == name)


def contradicting(count):
    """Return pairs of rows that ask the same and have different classes."""
    return [
        {"messages": chat(text(900 + n), answer(label, "So."))}
        for n in range(count)
        for label in ("login", "billing")
    ]


def repeated(count, label):
    """Return rows of one class that all ask the same."""
    return [{"messages": chat(text(800), answer(label, f"So {n}."))} for n in range(count)]


def broken(count):
    return [{"messages": chat(text(n, 4), "")} for n in range(count)]


def test_clean_rows_are_within_all_levels(data_lab):
    lab = data_lab(clean_rows(120))
    lab.upto(DATA_ORDER[-1])
    for item in DATA_ORDER:
        entry = lab.run.find_evidence(item)
        assert value(entry, "removed_share") == value(entry, "class_removed_share") == 0
        assert removed(lab, item)["removed"] == 0
        assert "taken out" not in entry.summary
        lab.agree(item, "pass")


@pytest.mark.parametrize(("pairs", "verdict"), [(5, "pass"), (25, "warn"), (90, "fail")])
def test_contradictions_turn_the_verdict(data_lab, pairs, verdict):
    lab = data_lab(clean_rows(120) + contradicting(pairs))
    entry = lab.upto("deduplication")
    share = 2 * pairs / (120 + 2 * pairs)
    assert value(entry, "removed_share") == pytest.approx(share)
    assert value(entry, "removed_share_label_conflict") == pytest.approx(share)
    assert ok(entry, "removed_share_at_most") is (verdict != "fail")
    assert ("most as label_conflict" in entry.summary) is (verdict != "pass")
    gate = lab.agree("deduplication", verdict)
    assert ("removed_rows.removed" in gate.summary) is (verdict != "pass")
    shown = value(entry, "examples_label_conflict")
    assert "rows.jsonl line 121 (2 rows ask the same, answers differ)" in shown
    examples = removed(lab, "deduplication")["reasons"]["label_conflict"]["examples"]
    assert [example["source_line"] for example in examples] == [121, 122, 123]


@pytest.mark.parametrize(("rows", "verdict"), [(9, "warn"), (30, "fail")])
def test_a_class_that_loses_most_of_its_rows_is_named(data_lab, rows, verdict):
    lab = data_lab(clean_rows(300) + repeated(rows, "refunds"))
    entry = lab.upto("deduplication")
    assert value(entry, "removed_share") < 0.1
    assert value(entry, "class_removed_share") == pytest.approx((rows - 1) / rows)
    assert f"Class 'refunds' lost {rows - 1} of its {rows} rows" in entry.summary
    assert removed(lab, "deduplication")["classes"][0]["class"] == "refunds"
    gate = lab.agree("deduplication", verdict)
    assert "removed_rows_of_classes.class_removed_share" in gate.summary


def test_malformed_rows_warn_before_they_fail_and_none_is_quoted(data_lab):
    secret = "ANNA-MARIA"
    rows = [{"messages": chat(f"{secret} {n}", "fine", system=""), "x": secret} for n in range(20)]
    lab = data_lab(clean_rows(120) + rows)
    entry = lab.upto("schema_validation")
    lab.agree("schema_validation", "warn")
    assert "taken out" in entry.summary
    stored = entry.model_dump_json() + json.dumps(removed(lab, "schema_validation"))
    assert secret not in stored
    assert "rows.jsonl line 121" in stored


def test_the_class_of_unscrubbed_rows_has_a_key_and_no_name(data_lab):
    rows = [{"messages": chat(text(n, 5), answer("anna@mail.example", ""))} for n in range(9)]
    lab = data_lab(
        clean_rows(120) + rows, answer_schema={"properties": {"reply": {"minLength": 1}}}
    )
    entry = lab.upto("schema_validation")
    assert "A class lost 9 of its 9 rows" in entry.summary
    stored = entry.model_dump_json() + json.dumps(removed(lab, "schema_validation"))
    assert "anna@mail" not in stored
    assert "anna@mail" not in json.dumps(lab.table("schema_validation", "audit.parquet"))
    lab.agree("schema_validation", "fail")


LONG = [{"messages": chat(text(n, 400), answer("login", "So."))} for n in (3, 4, 5)]
LOOSE = {
    "removed_share_warn": {"deduplication": 0.5},
    "class_removed_share_warn": {"deduplication": 1},
}


@pytest.mark.parametrize(
    ("rows", "settings", "item", "verdict"),
    [
        (repeated(7, "refunds"), {}, "deduplication", "pass"),
        (contradicting(25), LOOSE, "deduplication", "pass"),
        (LONG, {"max_tokens": 400}, "token_length_audit", "warn"),
    ],
    ids=["a class of few rows", "other levels", "too long"],
)
def test_levels_move_step_and_gate_alike(data_lab, rows, settings, item, verdict):
    lab = data_lab(clean_rows(120) + rows, **settings)
    lab.upto(item)
    lab.agree(item, verdict)


def test_rows_that_a_setting_asks_for_are_counted_apart(data_lab):
    lab = data_lab(clean_rows(300), max_train_rows=30)
    entry = lab.upto("distribution_balancing")
    assert value(entry, "removed_share") == 0
    assert value(entry, "removed_as_asked") == 300 - 30 - 4 - 45
    asked_for = removed(lab, "distribution_balancing")["asked_for"]
    assert set(asked_for) == {"train_cap", "validation_cap"}
    lab.agree("distribution_balancing", "pass")


def test_a_crowded_class_that_is_sampled_down_too_far_warns(data_lab):
    words = random.Random(3)
    rows = [
        {"messages": chat(" ".join(words.sample(WORDS, 9)), answer(label, f"So {n}."))}
        for n, label in enumerate([*"abc" * 20, *["crowd"] * 400])
    ]
    lab = data_lab(rows, max_class_ratio=2)
    entry = lab.upto("distribution_balancing")
    assert "Class 'crowd' lost" in entry.summary
    assert ok(entry, "class_removed_share") is False
    lab.agree("distribution_balancing", "warn")


def test_older_limits_are_the_level_of_failure_unless_the_item_is_named():
    config = DataConfig(source="x", max_rejected_share=0.4, max_too_long_share=0.6)
    assert levels_of("schema_validation", config).fail == 0.4
    assert levels_of("token_length_audit", config).fail == 0.6
    named = DataConfig(source="x", removed_share_fail={"schema_validation": 0.3})
    assert levels_of("schema_validation", named).fail == 0.3
    assert levels_of("deduplication", named) == levels_of("deduplication", config)


def test_a_wrong_level_is_refused():
    with pytest.raises(ValueError, match="the level of deduplication is not a share"):
        DataConfig(source="x", removed_share_warn={"deduplication": 20})
    with pytest.raises(ValueError, match="lineage"):
        DataConfig(source="x", class_removed_share_fail={"lineage": 0.2})
