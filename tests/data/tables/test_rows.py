import pyarrow.parquet as pq
import pytest
from tests.lab.data_runs import chat

from tuneline.data.tables import rows as tables
from tuneline.data.tables.rows import Reject, Row, StandIn

ROWS = [
    Row("a", chat("hi 🎉", "ho", "Be brief."), "f.jsonl", 1, label="x", own_holdout=True, raw="{}"),
    Row("b", chat("hi", "ho"), "f.jsonl", 2, stand_ins=(StandIn(0, 1, 2, "NAME"),)),
    Row("c", [*chat("1", "2"), *chat("3", "4")], "f.jsonl", 2**40, split="train", n_tokens=7),
]


@pytest.fixture(params=[1, 2, 100])
def parts(request, monkeypatch):
    monkeypatch.setattr(tables, "_PART_ROWS", request.param)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("rows", [ROWS, ROWS[::-1], []])
def test_rows_come_back(tmp_path, rows):
    path = tmp_path / "x" / "rows.parquet"
    tables.write_rows(path, iter(rows))
    assert tables.read_rows(path) == rows
    assert pq.read_schema(path).names == tables.ROW_COLUMNS
    assert [r["messages"] for r in pq.read_table(path).to_pylist()] == [r.messages for r in rows]


@pytest.mark.usefixtures("parts")
def test_datasets_and_rejects_come_back(tmp_path):
    rows = [Row("a", chat("hi", "ho"), "f", 1, split="train"), Row("b", chat("x", "y"), "f", 2)]
    tables.write_dataset(tmp_path / "dataset.parquet", rows, [1.0, 2.5])
    assert tables.read_dataset(tmp_path / "dataset.parquet") == (rows, [1.0, 2.5])
    rejects = [Reject("a", "item", "code: why", "f", 3, "raw\x00")]
    tables.write_rejects(tmp_path / "rejected.parquet", iter(rejects))
    assert tables.read_rejects(tmp_path / "rejected.parquet") == rejects
