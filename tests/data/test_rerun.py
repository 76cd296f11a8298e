"""A data step that is run again: the steps after it count as not run if its output differs."""

import json
from pathlib import Path

from tests.lab.data_runs import clean_rows, write_jsonl

from tuneline.catalogue import DATA_ORDER
from tuneline.verdicts import checklist


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
