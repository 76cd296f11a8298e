"""Read the rows of a Parquet file; a damaged row group loses its own rows only.

A few bytes of a file can stand for gigabytes: a long value that a dictionary holds once, or a page
of zeros. So values stay in their dictionaries until the size of each row is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.data.sources.byte_streams import MAX_LINE_BYTES, most_unpacked
from tuneline.data.sources.raw_record import (
    BROKEN_FILE,
    NothingInside,
    RawRecord,
    line_too_long,
)
from tuneline.errors import UserError, first_line

if TYPE_CHECKING:
    import numpy as np

_BATCH_ROWS = 1024
# More bytes of rows are not made into Python's objects at once.
_BATCH_BYTES = 64 << 20
# What Python needs for a value besides its text.
_VALUE_BYTES = 16


def open_parquet(path: Path, name: str) -> Any:
    """Open a file whose texts are read as dictionaries.

    Args:
        path: the file.
        name: its name in errors.

    Raises:
        UserError: if it can't be read, or unpacks to more than `most_unpacked`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_metadata(path).schema
        columns = (schema.column(number) for number in range(len(schema)))
        texts = [
            column.path
            for column in columns
            if column.physical_type == "BYTE_ARRAY" and column.logical_type.type != "DECIMAL"
        ]
        file = pq.ParquetFile(path, read_dictionary=texts)
    except (pa.ArrowException, OSError) as error:
        reason = first_line(error).rstrip(".")
        raise UserError(
            f"{name} can't be read as Parquet: {reason}; write the file again"
        ) from None
    facts = file.metadata
    size = sum(facts.row_group(group).total_byte_size for group in range(facts.num_row_groups))
    size += facts.num_rows * _VALUE_BYTES
    if size > (most := most_unpacked(path)):
        raise UserError(
            f"{name} unpacks to {size} bytes, more than the {most} that a file of its size may; "
            "write it as JSON lines without compression if it is meant"
        )
    return file


def read_parquet(path: Path, name: str) -> Iterator[RawRecord]:
    """Read the records of a file; see `records.read_records`."""
    import pyarrow as pa

    file = open_parquet(path, name)
    if file.metadata.num_rows == 0:
        raise NothingInside(f"{name} has no rows; there is nothing to train on")
    left = most_unpacked(path)
    number = 0
    for group in range(file.num_row_groups):
        facts = file.metadata.row_group(group)
        last = number + facts.num_rows
        fault = f"{BROKEN_FILE}: its row group {group} ends early"
        mean_bytes = facts.total_byte_size // max(1, facts.num_rows)
        at_once = min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(1, mean_bytes)))
        try:
            for batch in file.iter_batches(at_once, row_groups=[group]):
                for record, size in _parquet_records(number, batch, left):
                    number, left = record.source_line, left - size
                    yield record
        except (pa.ArrowException, OSError) as error:
            reason = first_line(error).rstrip(".")
            fault = f"{BROKEN_FILE}: its row group {group} is damaged ({reason})"
        # Each row of a damaged group is a fault of its own: the file says how many there are.
        while number < last:
            number += 1
            yield RawRecord(number, "", None, fault)


def _parquet_records(number: int, batch: Any, left: int) -> Iterator[tuple[RawRecord, int]]:
    """Yield the records of a batch with their sizes.

    Args:
        number: rows before it.
        batch: the rows.
        left: bytes that the file may still unpack to.
    """
    sizes = _row_bytes(batch.to_struct_array())
    if max(sizes) <= MAX_LINE_BYTES and sum(sizes) <= min(_BATCH_BYTES, left):
        try:
            values = batch.to_pylist()
        except (ValueError, OverflowError):
            # One bad value spoils a whole batch; read row by row, only its own row is lost.
            pass
        else:
            for index, (value, size) in enumerate(zip(values, sizes, strict=True), 1):
                yield _as_record(number + index, value), size
            return
    for index, size in enumerate(sizes):
        left -= size
        if size > MAX_LINE_BYTES:
            yield line_too_long(number + index + 1, b"", size), size
        elif left < 0:
            fault = f"{BROKEN_FILE}: its rows unpack to more than a file of its size holds"
            yield RawRecord(number + index + 1, "", None, fault), size
        else:
            yield _parquet_record(number + index + 1, batch.slice(index, 1)), size


def _row_bytes(array: Any) -> list[int]:
    """Return the bytes that each entry of an array takes as a Python object, about."""
    return [int(size) for size in _sizes(array)]


def _sizes(array: Any) -> np.ndarray:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    form = array.type
    if pa.types.is_dictionary(form):
        # The last size is that of a null.
        sizes = np.append(_sizes(array.dictionary), _VALUE_BYTES)
        return sizes[array.indices.fill_null(len(sizes) - 1).to_numpy(zero_copy_only=False)]
    if pa.types.is_struct(form):
        return sum((_sizes(field) for field in array.flatten()), np.zeros(len(array), np.int64))
    if pa.types.is_fixed_size_list(form):
        # An embedding, say. Its values are those of the whole array, whatever the slice.
        first, end = (at * form.list_size for at in (array.offset, array.offset + len(array)))
        values = _sizes(array.values)[first:end].reshape(len(array), form.list_size)
        return values.sum(axis=1) + _VALUE_BYTES
    if pa.types.is_nested(form):
        if not isinstance(array, pa.ListArray | pa.LargeListArray):
            raise pa.ArrowInvalid(f"columns of {form} can't be read")
        ends = np.asarray(array.offsets)
        inner = np.append(0, np.cumsum(_sizes(array.values)))
        return inner[ends[1:]] - inner[ends[:-1]] + _VALUE_BYTES
    if form in (pa.string(), pa.binary(), pa.large_string(), pa.large_binary()):
        texts = pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        return texts.astype(np.int64) + _VALUE_BYTES
    return np.full(len(array), _VALUE_BYTES + array.nbytes // max(1, len(array)), np.int64)


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
