import json
import random
from dataclasses import replace

import pytest
from tests.data.data_lab import clean_rows, value

from tuneline.data.final_audit import dataset_version, invalid_rows, leaking_rows, rows_with_pii
from tuneline.data.rendering import Renderer
from tuneline.data.tables import Row, read_dataset, write_dataset
from tuneline.models import load_tokenizer
from tuneline.verdicts import status


@pytest.fixture
def lab(data_lab):
    lab = data_lab(clean_rows(120))
    lab.upto("distribution_balancing")
    return lab


def tamper(lab, change):
    """Change the dataset after the steps are done, as a faulty step would."""
    path = lab.lab.root / "tampered.parquet"
    ref = next(
        r for r in lab.run.entry("distribution_balancing").artifacts if r.name == "dataset.parquet"
    )
    lab.run.store.get_file(lab.run.store.key_of(ref.uri), path)
    rows, weights = read_dataset(path)
    write_dataset(path, change(rows), weights)
    lab.lab.leave("distribution_balancing", {"dataset.parquet": path})


def broken(record):
    return {m.name for m in record.measurements if m.ok is False}


def test_clean_rows_hold(lab):
    record = lab.step("final_audit")
    assert broken(record) == set()
    document = lab.run.store.get_bytes(lab.run.step_key("final_audit", "dataset.json"))
    found = json.loads(document)
    assert found["rows"] == 120
    assert found["splits"] == {"train": 90, "validation": 12, "holdout": 18}
    assert found["version"] == value(record, "dataset_version")


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
    assert invalid_rows(good, renderer) == (0, 0, 0)
    assert invalid_rows([row(1, "")], renderer)[0] == 1
    twice = [row(1, "the very same question"), row(2, "the very same question", "holdout")]
    assert leaking_rows(twice, twice, 0.8) == 1
    assert leaking_rows(good, good, 0.8) == 0
    mail = [row(1, "anna@mail.com")]
    assert rows_with_pii(mail, {}, []) == 1
    assert rows_with_pii(mail, {"1": ["anna@mail.com"]}, []) == 0
    assert rows_with_pii(mail, {}, ["ANNA@mail.com"]) == 0


def test_the_sample_holds(sample_lab):
    assert broken(sample_lab.run.entry("final_audit")) == set()
