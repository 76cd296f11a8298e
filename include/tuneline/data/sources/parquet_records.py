"""Read the rows of a Parquet file; a damaged row group loses its own rows only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneline.data.sources.raw_record import BROKEN_FILE, NothingInside, RawRecord
from tuneline.errors import UserError, first_line

_BATCH_ROWS = 1024


def read_parquet(path: Path, name: str) -> Iterator[RawRecord]:
    """Read the records of a file; see `records.read_records`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        reason = first_line(error).rstrip(".")
        raise UserError(
            f"{name} can't be read as Parquet: {reason}; write the file again"
        ) from None
    if file.metadata.num_rows == 0:
        raise NothingInside(f"{name} has no rows; there is nothing to train on")
    number = 0
    for group in range(file.num_row_groups):
        last = number + file.metadata.row_group(group).num_rows
        fault = f"{BROKEN_FILE}: its row group {group} ends early"
        try:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group]):
                for record in _parquet_records(number, batch):
                    number = record.source_line
                    yield record
        except (pa.ArrowException, OSError) as error:
            reason = first_line(error).rstrip(".")
            fault = f"{BROKEN_FILE}: its row group {group} is damaged ({reason})"
        # Each row of a damaged group is a fault of its own: the file says how many there are.
        while number < last:
            number += 1
            yield RawRecord(number, "", None, fault)


def _parquet_records(number: int, batch: Any) -> Iterator[RawRecord]:
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError):
        # One bad value spoils a whole batch; read row by row, only its own row is lost.
        for index in range(batch.num_rows):
            yield _parquet_record(number + index + 1, batch.slice(index, 1))
        return
    for index, value in enumerate(values, 1):
        yield _as_record(number + index, value)


def _parquet_record(number: int, one: Any) -> RawRecord:
    try:
        value = one.to_pylist()[0]
    except UnicodeDecodeError:
        return RawRecord(number, "", None, "invalid_utf8: a text column is not UTF-8")
    except (ValueError, OverflowError) as error:
        return RawRecord(number, "", None, f"broken_value: {str(error)[:80]}")
    return _as_record(number, value)


def _as_record(number: int, value: dict[str, Any]) -> RawRecord:
    present = {key: entry for key, entry in value.items() if entry is not None}
    return RawRecord(number, json.dumps(present, ensure_ascii=False, default=str), present)
