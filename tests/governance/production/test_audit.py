"""The audit of a day's files sees each kind of loss; the faults are planted in the files."""

import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tests.lab.data_runs import text
from tests.lab.logged import logged

from tuneline.evidence import Verdict, conclude
from tuneline.governance.production.audit import audit
from tuneline.governance.production.curated_day import CURATED, REJECTED, REVIEW

ROWS = [
    *(logged(n, text(n), sample_rate=0.5) for n in range(8)),
    logged(8, text(1)),
    logged(9, text(9), status="timeout"),
]


@pytest.fixture
def files(store, curated, tmp_path):
    day = curated(store, ROWS)
    paths = [tmp_path / name for name in (CURATED, REJECTED, REVIEW)]
    for path in paths:
        day.fetch(path.name, path)
    ids = [row.request_id for row in ROWS]
    weights = [1 / row.sample_rate for row in ROWS]
    return pa.table({"request_id": ids, "weight": weights}), *paths


def broken(files):
    found = audit(*files)
    return conclude(found), {m.name for m in found if m.ok is False}


def change(path, edit):
    table = edit(pq.read_table(path))
    pq.write_table(table, path)


def with_column(name, value):
    def edit(table):
        at = table.schema.get_field_index(name)
        values = pa.array([value, *table[name].to_pylist()[1:]], table.schema.field(name).type)
        return table.set_column(at, table.schema.field(name), values)

    return edit


def test_an_untouched_day_passes(files):
    assert broken(files) == (Verdict.PASS, set())


FAULTS = [
    (1, lambda t: t.slice(1), {"requests_lost", "requests_unaccounted"}),
    (1, lambda t: pa.concat_tables([t, t.slice(0, 1)]), {"requests_twice"}),
    (1, with_column("request_id", "req-x"), {"requests_lost", "requests_invented"}),
    (1, with_column("seen", 9), {"requests_not_seen"}),
    (1, with_column("seen", 0), {"seen_below_1", "requests_not_seen"}),
    (1, with_column("weight", 2.5), {"weight_difference"}),
    (1, with_column("weight", 0.5), {"weight_below_1"}),
    (1, with_column("similarity", 1.5), {"similarity_out_of_range"}),
    (1, with_column("novelty", -0.1), {"novelty_out_of_range"}),
    (1, with_column("inclusion_probability", 1.5), {"probability_out_of_range"}),
    (1, with_column("inclusion_probability", None), {"review_rows_without_chance"}),
    (1, with_column("in_review", False), {"review_rows_wrong"}),
    (1, with_column("stratum", "other"), {"unknown_strata"}),
    (2, lambda t: t.slice(1), {"requests_lost", "requests_unaccounted"}),
    (2, lambda t: t.filter(pc.equal(t["reason"], "timeout")), {"requests_lost"}),
    (2, with_column("of", None), {"duplicates_of_nothing"}),
    (2, with_column("reason", "mood"), {"unknown_reasons"}),
    (2, with_column("reason", "no_text"), {"requests_not_seen", "weight_difference"}),
]


@pytest.mark.parametrize(("number", "edit", "names"), FAULTS)
def test_each_planted_fault_is_found(files, number, edit, names):
    change(files[number], edit)
    verdict, found = broken(files)
    assert verdict == Verdict.FAIL
    assert names <= found


def test_a_review_row_that_was_not_drawn_is_found(files):
    lines = files[3].read_text().splitlines()
    extra = {**json.loads(lines[0]), "request_id": "req-x"}
    files[3].write_text("\n".join([*lines, json.dumps(extra)]) + "\n")
    assert broken(files) == (Verdict.FAIL, {"review_rows_wrong"})
