"""The gate of a curated day finds faults that are planted in the stored tables."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.governance.production.test_audit import ROWS, with_column
from tests.lab.logged import DAY, MODEL, logged

from tuneline.governance.production.curate import curate
from tuneline.governance.production.curated_day import CURATED, REJECTED, open_day
from tuneline.governance.production.day_gate import gate_day
from tuneline.governance.production.settings import read_settings
from tuneline.store import CorruptObject, sha256_file


def in_store(day, name):
    return day.store.root / day.prefix / name


def planted(day, name, edit):
    """Change a stored table as a faulty curation would have written it: with its own hash."""
    path = in_store(day, name)
    pq.write_table(edit(pq.read_table(path)), path)
    files = [
        file.model_copy(update={"sha256": sha256_file(path)}) if file.name == name else file
        for file in day.evidence.files
    ]
    evidence = day.evidence.model_copy(update={"files": files})
    return replace(day, evidence=evidence)


def test_a_day_passes_and_leaves_its_gate_and_docs(store, curated):
    day = curated(store, ROWS)
    gate = gate_day(day)
    assert gate.verdict == "pass", gate.summary
    assert gate.expectations == 20
    document = json.loads(in_store(day, "gate.json").read_text())
    assert (document["schema"], document["verdict"]) == ("tuneline/curated-gate/1", "pass")
    assert "curated_rows" in store.get_bytes(store.key_of(gate.docs)).decode()
    # The day is what it was, and its docs hold no text.
    assert open_day(store, MODEL, DAY) is not None
    pages = in_store(day, "data_docs").rglob("*.html")
    assert not any(
        row.messages[-1]["content"] in page.read_text() for page in pages for row in ROWS
    )


def test_a_day_whose_requests_were_all_rejected_passes(store, curated):
    day = curated(store, [logged(n, "hello", status="timeout") for n in range(3)])
    assert gate_day(day).verdict == "pass"


def test_a_day_without_requests_has_nothing_to_check(store, without_names):
    settings = read_settings(without_names)
    gate = gate_day(curate(store, MODEL, DAY, settings))
    assert (gate.verdict, gate.docs) == ("not_applicable", None)


FAULTS = [
    (CURATED, lambda t: t.slice(1), "row count to equal"),
    (CURATED, lambda t: pa.concat_tables([t, t.slice(0, 1)]), "unique"),
    (CURATED, with_column("request_id", None), "requests.request_id"),
    (CURATED, with_column("seen", 9), "requests.counted"),
    (CURATED, with_column("weight", 0.5), "curated_rows.weight"),
    (CURATED, with_column("similarity", 1.5), "curated_rows.similarity"),
    (CURATED, with_column("novelty", -0.1), "curated_rows.novelty"),
    (CURATED, with_column("inclusion_probability", 1.5), "inclusion_probability"),
    (CURATED, with_column("inclusion_probability", None), "offered_without_chance"),
    (CURATED, with_column("in_review", False), "curated_rows.offered"),
    (CURATED, with_column("stratum", "other"), "curated_rows.stratum"),
    (CURATED, with_column("resembles", "holdout"), "offered_like"),
    (REJECTED, with_column("of", None), "replaced_by_nothing"),
    (REJECTED, with_column("reason", "mood"), "rejected_requests.reason"),
    (REJECTED, with_column("reason", "no_text"), "requests.counted"),
]


@pytest.mark.parametrize(("name", "edit", "words"), FAULTS)
def test_each_planted_fault_is_found(store, curated, name, edit, words):
    gate = gate_day(planted(curated(store, ROWS), name, edit))
    assert gate.verdict == "fail"
    assert words in gate.summary


def test_a_request_of_another_day_is_found(store, curated):
    def later(table):
        at = table.schema.get_field_index("time")
        kind = table.schema.field("time").type
        return table.set_column(at, "time", pa.array([2**41] * table.num_rows, kind))

    assert "of_the_day" in gate_day(planted(curated(store, ROWS), CURATED, later)).summary


def test_a_table_that_was_changed_is_refused(store, curated):
    day = curated(store, ROWS)
    in_store(day, CURATED).write_bytes(b"x")
    with pytest.raises(CorruptObject):
        gate_day(day)
