"""Clean data of many kinds and sizes: no gate, no step and no final audit raises a false alarm."""

import json
import random
from pathlib import Path

import pytest
from tests.lab.data_runs import WORDS, answer, chat, clean_rows, write_jsonl

from tuneline.catalogue import DATA_ORDER
from tuneline.verdicts import checklist

CLASSES = "billing login shipping returns stock delivery".split()


def words(draw, count):
    return " ".join(draw.choices(WORDS, k=count))


def clean_rows_of(seed):
    """Rows without a fault: classes of unequal sizes in JSON, or free text without any class."""
    draw = random.Random(seed)
    classes = CLASSES[: draw.randint(2, 6)]
    sizes = {name: draw.randint(60, 180) for name in classes}
    system = draw.choice([None, "Answer the customer of a shop in one sentence."])
    rows = []
    for name, size in sizes.items():
        for _ in range(size):
            asked = f"{words(draw, draw.randint(6, 24)).capitalize()}?"
            told = f"{words(draw, draw.randint(4, 16)).capitalize()}."
            turns = chat(asked, answer(name, told) if seed % 2 == 0 else told, system)
            if draw.random() < 0.2:
                more = [f"{words(draw, 9).capitalize()}?", f"{words(draw, 6).capitalize()}."]
                turns = [*turns[:-1], {"role": "assistant", "content": more[1]}]
                turns += chat(more[0], answer(name, told) if seed % 2 == 0 else told)
            rows.append({"messages": turns})
    draw.shuffle(rows)
    return rows


# Each takes some ten seconds; both kinds of rows are among the first.
SEEDS = [*range(2), *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 20))]


@pytest.mark.parametrize("seed", SEEDS)
def test_no_false_alarm(data_lab, seed):
    rows = clean_rows_of(seed)
    settings = {} if seed % 2 == 0 else {"label_field": None}
    lab = data_lab(rows, pii_profile=["gdpr", "pci"], license="Apache-2.0", **settings)
    for item in DATA_ORDER:
        entry = lab.step(item)
        assert entry.verdict == "pass", (item, entry.summary, entry.measurements)
        assert lab.rejected(item) == [], item
        gate = lab.gate(item)
        assert (gate.verdict, gate.agrees) == ("pass", True), gate.summary
    record = lab.step("final_audit")
    assert all(m.ok is not False for m in record.measurements), record.measurements
    assert len(lab.table("distribution_balancing", "dataset.parquet")) == len(rows)


def outdated(lab):
    return {
        row.item: row.because
        for row in checklist(lab.run)
        if row.item in DATA_ORDER and row.verdict == "not_run"
    }


def test_a_data_step_run_again(data_lab):
    lab = data_lab(clean_rows(60))
    lab.upto("distribution_balancing")
    lab.step("final_audit")
    assert outdated(lab) == {}

    # The same rows again.
    for step in ("schema_validation", "deduplication", "final_audit"):
        lab.step(step)
    assert outdated(lab) == {}

    # Other rows: what follows rests on the rows from before.
    write_jsonl(Path(lab.run.config.data.source), clean_rows(61))
    lab.step("schema_validation")
    found = outdated(lab)
    # The final audit judges the first item too.
    assert set(found) == set(DATA_ORDER)
    assert found["pii_scrubbing"].startswith(
        "pii_scrubbing read quarantine/rows.parquet of schema_validation as "
    )
    assert all(" of schema_validation as " in because for because in found.values())

    # One after the other they come back.
    for step in (*DATA_ORDER[1:], "final_audit"):
        lab.step(step)
    assert outdated(lab) == {}
    assert json.loads(lab.lab.artifact("final_audit", "dataset.json").read_text())["rows"] == 61
