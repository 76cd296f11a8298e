"""Partitions behave the same on a directory and on a real S3 server over HTTP."""

from datetime import UTC, date, datetime

import pyarrow.parquet as pq
import pytest

from tuneline.artifacts.request_log import (
    COLUMNS,
    SCHEMA,
    LoggedRequest,
    days,
    folder_name,
    part_key,
    read_day,
    table_of,
    write_part,
)
from tuneline.store import CorruptObject, open_store

DAY = date(2026, 11, 26)


@pytest.fixture
def store(any_store):
    return any_store


def logged(number: int, **fields: object) -> LoggedRequest:
    values = {
        "request_id": f"req-{number}",
        "time": datetime(2026, 11, 26, 12, 0, number, 5000, tzinfo=UTC),
        "key": "alice",
        "model": "org/support",
        "model_version": "run-1",
        "messages": [{"role": "user", "content": f"question {number}\n\x00 “é”"}],
        "answer": "yes",
        "latency_ms": 12.5,
        "ttft_ms": None,
        "confidence": -0.25,
        "served_by": "small",
        "fallback_reason": None,
        "prompt_tokens": 3,
        "completion_tokens": 1,
        "finish_reason": "stop",
        "status": "ok",
        "sample_rate": 0.5,
        "redactions": [{"type": "EMAIL_ADDRESS", "count": 2}],
        **fields,
    }
    return LoggedRequest(**values)


def write(store, tmp_path, part: str, *rows: LoggedRequest) -> str:
    table, torn = table_of(b"".join(row.line() for row in rows))
    assert torn == 0
    key = part_key(folder_name(rows[0].model), rows[0].day.isoformat(), part)
    write_part(store, key, table, tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()
    return key


def test_the_columns_of_a_row_are_those_of_the_schema():
    assert list(COLUMNS) == SCHEMA.names


def test_a_day_is_read_as_it_was_written(store, tmp_path):
    key = write(store, tmp_path, "b", logged(2), logged(1))
    assert key == "logs/org%2Fsupport/2026-11-26/b.parquet"
    write(store, tmp_path, "a", logged(3, messages=None, redactions=None, answer=None))
    table = read_day(store, "org/support", DAY)
    assert table.schema.names == SCHEMA.names
    rows = table.to_pylist()
    assert [row["request_id"] for row in rows] == ["req-1", "req-2", "req-3"]
    expected = logged(1)
    assert {name: rows[0][name] for name in COLUMNS} == {
        name: getattr(expected, name) for name in COLUMNS
    }
    assert rows[2]["messages"] is None


def test_a_request_that_is_in_two_parts_is_read_once(store, tmp_path):
    write(store, tmp_path, "a", logged(1), logged(2), logged(2))
    write(store, tmp_path, "b", logged(2), logged(3))
    ids = read_day(store, "org/support", DAY)["request_id"].to_pylist()
    assert ids == ["req-1", "req-2", "req-3"]


def test_days_are_of_one_model_only(store, tmp_path):
    assert days(store, "org/support") == []
    assert read_day(store, "org/support", DAY).num_rows == 0
    write(store, tmp_path, "a", logged(1))
    write(store, tmp_path, "b", logged(1, time=datetime(2026, 11, 5, 23, 59, tzinfo=UTC)))
    write(store, tmp_path, "c", logged(1, model="org"))
    write(store, tmp_path, "d", logged(1, model="org/support-2"))
    assert days(store, "org/support") == [date(2026, 11, 5), DAY]
    assert days(store, "org") == [DAY]
    assert read_day(store, "org", DAY).num_rows == 1


def test_a_part_that_was_changed_is_refused(tmp_path):
    store = open_store((tmp_path / "store").as_uri())
    key = write(store, tmp_path, "a", logged(1))
    pq.write_table(SCHEMA.empty_table(), tmp_path / "store" / key)
    with pytest.raises(CorruptObject):
        read_day(store, "org/support", DAY)


def test_torn_lines_cost_themselves_only():
    lines = logged(1).line() + b"\x00" * 40 + b"\n" + logged(2).line() + logged(3).line()[:-30]
    table, torn = table_of(lines)
    assert table["request_id"].to_pylist() == ["req-1", "req-2"]
    assert torn == 2
    assert table_of(b"") == (SCHEMA.empty_table(), 0)
    unknown = b'{"request_id": "req-9", "password": "x"}\n'
    assert table_of(unknown)[1] == 1


def test_a_long_prompt_is_one_row():
    long = [{"role": "user", "content": "word " * 400_000}]
    table, torn = table_of(logged(1, messages=long).line() + logged(2).line())
    assert (table.num_rows, torn) == (2, 0)
