import tracemalloc
from dataclasses import replace
from itertools import compress

import pyarrow.parquet as pq
import pytest
from tests.lab.data_runs import chat

from tuneline.data.conversations.reading import Outcome
from tuneline.data.tables import rows as reject_tables
from tuneline.data.tables import rows as tables
from tuneline.data.tables.rows import Reject, Row, Spool, StandIn, StoredRows

ROWS = [
    Row("a", chat("hi 🎉", "ho", "Be brief."), "f.jsonl", 1, label="x", own_holdout=True, raw="{}"),
    Row("b", chat("hi", "ho"), "f.jsonl", 2, stand_ins=(StandIn(0, 1, 2, "NAME"),)),
    Row("c", [*chat("1", "2"), *chat("3", "4")], "f.jsonl", 2**40, split="train", n_tokens=7),
]


@pytest.fixture(params=[1, 2, 100])
def parts(request, monkeypatch):
    monkeypatch.setattr(tables, "PART_ROWS", request.param)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("rows", [ROWS, ROWS[::-1], []])
def test_rows_come_back(tmp_path, rows):
    path = tmp_path / "x" / "rows.parquet"
    tables.write_rows(path, iter(rows))
    assert tables.read_rows(path) == rows
    assert pq.read_schema(path).names == tables.ROW_COLUMNS
    assert [r["messages"] for r in pq.read_table(path).to_pylist()] == [r.messages for r in rows]


def write_rejects(path, rejects):
    with tables.TableWriter(path, reject_tables.REJECT_COLUMNS) as table:
        table.write(rejects)


@pytest.mark.usefixtures("parts")
def test_datasets_and_rejects_come_back(tmp_path):
    rows = [Row("a", chat("hi", "ho"), "f", 1, split="train"), Row("b", chat("x", "y"), "f", 2)]
    tables.write_dataset(tmp_path / "dataset.parquet", rows, [1.0, 2.5])
    assert tables.read_dataset(tmp_path / "dataset.parquet") == (rows, [1.0, 2.5])
    held = Row("c", chat("k", "l"), "f", 3, split="holdout")
    tables.write_dataset(tmp_path / "held.parquet", [rows[0], held], [1.0, 1.0])
    assert tables.read_dataset(tmp_path / "held.parquet") == (rows[:1], [1.0])
    assert tables.read_dataset(tmp_path / "held.parquet", holdout=True)[0] == [rows[0], held]
    rejects = [Reject("a", "item", "code: why", "f", 3, "raw\x00")]
    write_rejects(tmp_path / "rejected.parquet", iter(rejects))
    assert reject_tables.read_rejects(tmp_path / "rejected.parquet") == rejects


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("rows", [ROWS * 3, []])
def test_stored_rows_are_a_sequence_of_the_rows_written(tmp_path, rows):
    tables.write_rows(tmp_path / "rows.parquet", rows)
    stored = StoredRows(tmp_path / "rows.parquet")
    assert len(stored) == len(rows)
    assert list(stored) == rows
    assert [stored[number] for number in range(len(rows))] == rows
    for start, stop in ((0, 2), (1, 8), (5, 100), (3, 3)):
        assert stored[start:stop] == rows[start:stop]
    for flags in ([n % 3 == 1 for n in range(len(rows))], [0] * len(rows), b"\x01" * len(rows)):
        assert list(stored.chosen(flags)) == list(compress(rows, flags))
    for number in (*range(len(rows)), *range(len(rows))):
        assert stored[number] == rows[number]
    holding = [row for row in rows if row.stand_ins]
    assert list(tables.with_stand_ins(stored)) == list(tables.with_stand_ins(rows)) == holding
    assert stored.column("row_id") == [row.row_id for row in rows]
    assert stored.facts() == [replace(row, messages=[], raw="", stand_ins=()) for row in rows]
    with pytest.raises(IndexError):
        stored[len(rows)]
    if rows:
        assert stored[-1] == rows[-1]


class Leaving:
    """What `write_decisions` asks of a step's context."""

    step = "deduplication"

    def __init__(self, folder):
        self.out = self.quarantine = folder
        self.asked = []

    def input(self, step, name):
        self.asked.append((step, name))
        return self.out / "unscrubbed.parquet"


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("reasons", [[None, "near: x", None, "far"], [None] * 4, ["a"] * 4])
def test_rows_that_leave_are_written_with_their_lines(tmp_path, reasons):
    whole = [
        Row(name, chat("hi", "ho"), "f", n, raw=f"line {name}") for n, name in enumerate("abc")
    ]
    tables.write_rows(tmp_path / "unscrubbed.parquet", whole)
    pieces = [replace(whole[0], raw=""), *(replace(whole[1], row_id=f"b#{k}") for k in "01")]
    tables.write_rows(tmp_path / "in.parquet", [*pieces, whole[2]])
    left = reject_tables.write_decisions(
        Leaving(tmp_path), StoredRows(tmp_path / "in.parquet"), reasons
    )
    written = reject_tables.read_rejects(next(tmp_path.rglob("rejected.parquet")))
    wanted = [
        Reject(row_id, "deduplication", reason, "f", line, f"line {row_id[0]}")
        for row_id, line, reason in zip(
            ("a", "b#0", "b#1", "c"), (0, 1, 1, 2), reasons, strict=True
        )
        if reason is not None
    ]
    assert written == wanted
    assert left == len(wanted)


def peak_of(work):
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_pass_over_stored_rows_holds_one_part(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "PART_ROWS", 64)

    def made(count):
        return (Row(f"{n:016x}", chat("hi " * 50, "ho"), "f.jsonl", n) for n in range(count))

    def peaks(count):
        """Peaks of writing rows, of a pass over them, and of reading them all."""
        path = tmp_path / f"{count}.parquet"
        written = peak_of(lambda: tables.write_rows(path, made(count)))
        stored = StoredRows(path)
        passed = peak_of(lambda: sum(1 for _ in stored))
        return written, passed, peak_of(lambda: tables.read_rows(path))

    (*few, _), (*many, held) = peaks(640), peaks(6400)
    assert all(small * 2 > large for small, large in zip(few, many, strict=True))
    assert held > 5 * max(many), "a list of the rows is what this saves"


def test_batches_come_back_in_order_any_number_of_times(tmp_path):
    spool: Spool[Outcome] = Spool(tmp_path / "spool")
    assert list(spool) == []
    batches = [
        [Outcome("a", "f", 1, "raw \ud800", own_holdout=False, messages=[{"role": "user"}])],
        [],
        [Outcome("b", "f", 2, "", own_holdout=True, reason="code: why")] * 2,
    ]
    for batch in batches:
        spool.add(batch)
    assert list(spool) == batches
    assert list(spool) == batches
