import random
from dataclasses import replace

import pytest
from tests.lab.data_runs import answer, chat, clean_rows, text
from tests.lab.runs import broken, value

from tuneline.artifacts.data import AUDIT, DATASET, DATASET_VERSION
from tuneline.config import DataConfig
from tuneline.data.final_audit import (
    Format,
    dataset_version,
    found_again,
    leaking_rows,
    measure_format,
    rows_with_pii,
)
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import Row, read_dataset, stored_dataset, write_dataset
from tuneline.models import load_tokenizer
from tuneline.verdicts import status


@pytest.fixture
def lab(data_lab):
    lab = data_lab(clean_rows(120))
    lab.upto("distribution_balancing")
    return lab


def tamper(lab, change):
    """Change the dataset after the steps are done, as a faulty step would.

    `change` gives rows, or rows and weights.
    """
    step, dataset = DATASET.step, lab.lab.root / "tampered.parquet"
    rows, weights = read_dataset(lab.lab.artifact(step, DATASET.name), holdout=True)
    changed = change(rows)
    rows, weights = changed if isinstance(changed, tuple) else (changed, weights)
    write_dataset(dataset, rows, weights)
    lab.lab.leave(step, {DATASET.name: dataset, AUDIT: lab.lab.artifact(step, AUDIT)})


def test_clean_rows_hold(lab):
    record = lab.step("final_audit")
    assert broken(record) == set()
    found = DATASET_VERSION.find(lab.run)
    assert found.rows == 120
    assert found.splits == {"train": 90, "validation": 12, "holdout": 18}
    assert found.version == value(record, "dataset_version")


@pytest.mark.parametrize(
    ("change", "measurement"),
    [
        (lambda text: text + "<|im_end|>", "schema_validation.invalid_rows"),
        (lambda text: "", "schema_validation.invalid_rows"),
        (lambda text: text * 400, "token_length_audit.tokens_max"),
        (lambda text: text + " more", "token_length_audit.stale_counts"),
        (lambda text: text + " anna@mail.com", "pii_scrubbing.rows_with_pattern_hits"),
    ],
)
def test_a_fault_that_a_step_put_in_is_found(lab, change, measurement):
    def first(rows):
        turns = [{**rows[0].messages[0], "content": change(rows[0].messages[0]["content"])}]
        return [replace(rows[0], messages=turns + rows[0].messages[1:]), *rows[1:]]

    tamper(lab, first)
    assert measurement in broken(lab.step("final_audit"))
    item = measurement.split(".")[0]
    assert status(lab.run, item).verdict == "fail"


def test_a_leak_is_found(lab):
    def leak(rows):
        held = next(r for r in rows if r.split == "holdout")
        return [replace(rows[0], messages=held.messages, split="train"), *rows[1:]]

    tamper(lab, leak)
    assert "deduplication.cross_split_near_duplicates" in broken(lab.step("final_audit"))


def test_a_piece_in_another_split_is_found(data_lab):
    long = [turn for n in range(16) for turn in chat(text(900 + n), answer("login", "Yes."))]
    lab = data_lab([*clean_rows(60), {"messages": long}], max_tokens=220, too_long="split")
    lab.upto("distribution_balancing")
    record = lab.step("final_audit")
    assert broken(record) == set()
    assert value(record, "deduplication.rows_torn_across_splits") == 0
    other = {"train": "validation", "validation": "train", "holdout": "train"}
    pieces = []

    def tear(rows):
        pieces.extend(r.row_id for r in rows if "#" in r.row_id)
        return [replace(r, split=other[r.split]) if r.row_id == pieces[0] else r for r in rows]

    tamper(lab, tear)
    record = lab.step("final_audit")
    assert len(pieces) > 1
    assert value(record, "deduplication.rows_torn_across_splits") == 1
    assert status(lab.run, "deduplication").verdict == "fail"


def test_a_copied_row_is_found_where_a_weight_is_none(lab):
    def weigh(rows):
        return rows, [3.0 if r.split == "train" else 1.0 for r in rows]

    def copy(rows):
        first = next(r for r in rows if r.split == "train")
        copies = [replace(first, row_id=f"{first.row_id}-copy")]
        return [*rows, *copies], [1.0] * (len(rows) + 1)

    tamper(lab, weigh)
    assert broken(lab.step("final_audit")) == set()
    tamper(lab, copy)
    record = lab.step("final_audit")
    assert broken(record) == {"deduplication.repeated_rows"}
    assert status(lab.run, "deduplication").verdict == "warn"


@pytest.mark.parametrize("weight", [0.0, -1.0, 99.0, float("nan")])
def test_a_weight_that_no_policy_gives_is_found(lab, weight):
    tamper(lab, lambda rows: (rows, [weight] + [1.0] * (len(rows) - 1)))
    assert "distribution_balancing.weights_out_of_range" in broken(lab.step("final_audit"))


def test_a_class_that_is_personal_data_is_found(lab):
    tamper(lab, lambda rows: [replace(rows[0], label="anna@mail.com"), *rows[1:]])
    assert broken(lab.step("final_audit")) == {"pii_scrubbing.labels_with_pattern_hits"}
    assert status(lab.run, "pii_scrubbing").verdict == "fail"


def test_an_answer_off_its_schema_is_found(data_lab):
    schema = {"type": "object", "required": ["intent", "reply"]}
    lab = data_lab(clean_rows(60), answer_schema=schema)
    lab.upto("distribution_balancing")
    assert broken(lab.step("final_audit")) == set()

    def spoil(rows):
        turns = [*rows[0].prompt, {"role": "assistant", "content": '{"intent": "login"}'}]
        return [replace(rows[0], messages=turns), *rows[1:]]

    tamper(lab, spoil)
    assert "schema_validation.invalid_answers" in broken(lab.step("final_audit"))


def row(number, text, split="train"):
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
    return Row(str(number), turns, "f", number, label="a", split=split)


def test_version_does_not_depend_on_order_or_place():
    rows = [row(n, f"question {n}") for n in range(30)]
    moved = [replace(r, row_id=f"x{r.row_id}", source_line=999, source_file="g") for r in rows]
    random.Random(1).shuffle(moved)
    version = dataset_version(rows, [1.0] * 30)
    assert dataset_version(moved, [1.0] * 30) == version
    assert dataset_version(rows, [1.0] * 29 + [2.0]) != version
    assert dataset_version(rows[1:], [1.0] * 29) != version
    assert dataset_version([replace(rows[0], split="holdout"), *rows[1:]], [1.0] * 30) != version


def test_the_parts(base_dir):
    renderer = Renderer(load_tokenizer(base_dir), "tokenizer")
    good = [row(1, "one two"), row(2, "three")]
    lengths = renderer.count(renderer.text(row.messages) for row in good)
    assert measure_format(good, renderer) == Format(lengths=lengths)
    assert measure_format([row(1, "")], renderer).invalid == 1
    twice = [row(1, "the very same question"), row(2, "the very same question", "holdout")]
    assert leaking_rows(twice, twice, 0.8) == 1
    assert leaking_rows(good, good, 0.8) == 0
    mail = [row(1, "anna@mail.com")]
    assert rows_with_pii(mail, {}, DataConfig(source="rows.jsonl")) == 1
    assert (
        rows_with_pii(
            mail, {"1": [("EMAIL_ADDRESS", "anna@mail.com")]}, DataConfig(source="rows.jsonl")
        )
        == 0
    )
    assert (
        rows_with_pii(mail, {}, DataConfig(source="rows.jsonl", pii_allow=["ANNA@mail.com"])) == 0
    )
    visit = [row(1, "I was admitted on 3 March 2024")]
    assert rows_with_pii(visit, {}, DataConfig(source="rows.jsonl")) == 0
    assert rows_with_pii(visit, {}, DataConfig(source="rows.jsonl", pii_profile=["hipaa"])) == 1


def test_the_sample_holds(sample_lab):
    assert broken(sample_lab.run.entry("final_audit")) == set()


def test_the_model_reads_some_rows_again(tmp_path):
    people = ["Hannah Murphy", "Jan Kowalczyk", "José García"]
    rows = [row(n, f"hello, my name is {people[n % 3]} and I lost my card") for n in range(30)]
    write_dataset(tmp_path / "rows.dataset", rows, [1.0] * len(rows))
    stored, _ = stored_dataset(tmp_path / "rows.dataset")
    config = DataConfig(source="rows.jsonl")
    assert found_again(stored, {}, config) == (30, 30)
    surrogates = {str(n): [("PERSON", people[n % 3])] for n in range(30)}
    assert found_again(stored, surrogates, config) == (0, 30)
    assert found_again(stored, {}, DataConfig(source="rows.jsonl", pii_ner=False)) == (0, 0)
