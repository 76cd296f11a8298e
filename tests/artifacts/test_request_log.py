"""Partitions behave the same on a directory and on a real S3 server over HTTP."""

from datetime import date, timedelta

import pyarrow.parquet as pq
import pytest
from tests.lab.logged import DAY, MODEL, logged, put

from tuneline.artifacts.request_log import COLUMNS, SCHEMA, days, read_day, table_of
from tuneline.store import CorruptObject, open_store

ODD = "question\n\x00 “é”"


def ids(store, model=MODEL):
    return read_day(store, model, DAY)["request_id"].to_pylist()


def test_a_day_is_read_as_it_was_written_each_request_once(any_store, tmp_path):
    slashed = {"model": "org/support"}
    put(
        any_store,
        [logged(2, "b", **slashed), logged(1, ODD, **slashed)],
        tmp_path,
        "b",
        "org/support",
    )
    assert list(any_store.keys("logs")) == ["logs/org%2Fsupport/2026-03-04/b.parquet"]
    lost = {"messages": None, "redactions": None, "answer": None, **slashed}
    again = [logged(2, "b", **slashed), logged(3, "", **lost), logged(3, "", **lost)]
    put(any_store, again, tmp_path, "a", "org/support")
    table = read_day(any_store, "org/support", DAY)
    assert table.schema.names == SCHEMA.names == list(COLUMNS)
    rows = table.to_pylist()
    assert [row["request_id"][-1] for row in rows] == ["1", "2", "3"]
    expected = logged(1, ODD, **slashed)
    assert rows[0] == {name: getattr(expected, name) for name in COLUMNS}
    assert rows[2]["messages"] is None


def test_days_are_of_one_model_only(any_store, tmp_path):
    assert days(any_store, MODEL) == ids(any_store) == []
    put(any_store, [logged(1, "a")], tmp_path)
    put(any_store, [logged(1, "a", day=DAY - timedelta(days=3))], tmp_path)
    put(any_store, [logged(1, "a")], tmp_path, model=f"{MODEL}/2")
    put(any_store, [logged(1, "a")], tmp_path, model=f"{MODEL}-2")
    assert days(any_store, MODEL) == [date(2026, 3, 1), DAY]
    assert len(ids(any_store, f"{MODEL}/2")) == 1


def test_a_part_that_was_changed_is_refused(tmp_path):
    store = open_store((tmp_path / "store").as_uri())
    put(store, [logged(1, "a")], tmp_path)
    [key] = store.keys("logs")
    pq.write_table(SCHEMA.empty_table(), tmp_path / "store" / key)
    with pytest.raises(CorruptObject):
        read_day(store, MODEL, DAY)


def test_torn_lines_cost_themselves_only():
    one, two, three = (logged(n, "a").line() for n in (1, 2, 3))
    table, torn = table_of(one + b"\x00" * 40 + b"\n" + two + three[:-30])
    assert (table.num_rows, torn) == (2, 2)
    assert table_of(b"") == (SCHEMA.empty_table(), 0)
    assert table_of(b'{"request_id": "req-9", "password": "x"}\n')[1] == 1
    # A long prompt is one row.
    table, torn = table_of(logged(1, "word " * 400_000).line() + two)
    assert (table.num_rows, torn) == (2, 0)
