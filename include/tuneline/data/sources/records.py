"""Read raw records from JSONL, CSV, TSV and Parquet, each with its file, line and original text.

JSONL and CSV may be packed by gzip or zstd. One bad byte, line or record never stops the rest: it
becomes a record with a fault, and so does the rest of a file that breaks off. A file that is
unusable as a whole (empty, not a table) is an error, or, among other files, a record with a fault.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.artifacts.data import Snapshot, SourceNote
from tuneline.config import DataConfig
from tuneline.data.sources.csv_files import CsvForm, read_csv
from tuneline.data.sources.find_files import (
    CSV_ENDINGS,
    ENDINGS,
    JSONL_ENDINGS,
    SourceFile,
    ending_of,
    find_files,
    is_csv,
)
from tuneline.data.sources.streams import (
    BROKEN_FILE,
    MAX_LINE_BYTES,
    BrokenStream,
    NothingInside,
    RawRecord,
    broken_file,
    compression_of,
    count_lines,
    head_of,
    invalid_utf8,
    line_too_long,
    lines,
    most_unpacked,
    show_bytes,
)
from tuneline.errors import UserError, first_line

if TYPE_CHECKING:
    import numpy as np

# Deeper than any conversation; beyond, showing a value may exhaust the interpreter's stack.
MAX_DEPTH = 100


class DuplicateKey(ValueError):
    """A JSON object names a key twice."""


def parse_json(text: str) -> Any:
    """Parse JSON; ValueError (`DuplicateKey` for a repeated key), RecursionError if too deep."""
    value = json.loads(
        text, object_pairs_hook=_unique_keys, parse_constant=_finite, parse_float=_finite
    )
    level = [value] if text.count("[") + text.count("{") > MAX_DEPTH else []
    for _ in range(MAX_DEPTH + 1):
        holders = (
            entry.values() if isinstance(entry, dict) else entry
            for entry in level
            if isinstance(entry, dict | list)
        )
        level = [entry for holder in holders for entry in holder]
    if level:
        raise RecursionError(f"more than {MAX_DEPTH} levels")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a number of JSON")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise DuplicateKey(next(key for key, count in counts.items() if count > 1))
    return found


def read_jsonl(path: Path, name: str) -> Iterator[RawRecord]:
    """Read the records of a file; see `records.read_records`."""
    blank = True
    number = 0
    try:
        for number, (line, size) in enumerate(lines(path), 1):
            data = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            record = _json_record(number, data.rstrip(b"\r\n"), size)
            blank = blank and record.fault == "blank_line"
            yield record
    except BrokenStream as error:
        yield broken_file(number + 1, error)
        return
    if blank:
        raise NothingInside(f"{name} holds blank lines only; there is nothing to train on")


def _json_record(number: int, data: bytes, size: int) -> RawRecord:
    if size > MAX_LINE_BYTES:
        return line_too_long(number, data, size)
    if not data.strip():
        return RawRecord(number, show_bytes(data), None, "blank_line")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return invalid_utf8(number, data, error)
    try:
        return RawRecord(number, text, parse_json(text))
    except DuplicateKey as error:
        fault = f"duplicate_key: {str(error)[:80]!r} stands twice"
    except RecursionError:
        fault = "broken_json: nested too deeply"
    except json.JSONDecodeError as error:
        fault = f"broken_json: {error.msg} at character {error.pos}"
    except ValueError as error:
        fault = f"broken_json: {str(error)[:80]}"
    return RawRecord(number, text, None, fault)


_BATCH_ROWS = 1024
# More bytes of rows are not made into Python's objects at once.
_BATCH_BYTES = 64 << 20
# What Python needs for a value besides its text.
_VALUE_BYTES = 16


def open_parquet(path: Path, name: str) -> Any:
    """Open a file with texts as dictionaries; UserError if broken, or over `most_unpacked`."""
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
        # Each row of a damaged group is a separate fault: the file says how many there are.
        while number < last:
            number += 1
            yield RawRecord(number, "", None, fault)


def _parquet_records(number: int, batch: Any, left: int) -> Iterator[tuple[RawRecord, int]]:
    """Yield the records of a batch with their sizes."""
    sizes = [int(size) for size in _sizes(batch.to_struct_array())]
    if max(sizes) <= MAX_LINE_BYTES and sum(sizes) <= min(_BATCH_BYTES, left):
        values = None
        # One bad value spoils a whole batch; read row by row, only its own row is lost.
        with suppress(ValueError, OverflowError):
            values = batch.to_pylist()
        if values is not None:
            for line, (value, size) in enumerate(zip(values, sizes, strict=True), number + 1):
                yield _as_record(line, value), size
            return
    for line, size in enumerate(sizes, number + 1):
        left -= size
        if size > MAX_LINE_BYTES:
            yield line_too_long(line, b"", size), size
            continue
        fault = f"{BROKEN_FILE}: its rows unpack to more than a file of its size holds"
        if left >= 0:
            try:
                yield _as_record(line, batch.slice(line - number - 1, 1).to_pylist()[0]), size
                continue
            except UnicodeDecodeError:
                fault = "invalid_utf8: a text column is not UTF-8"
            except (ValueError, OverflowError) as error:
                fault = f"broken_value: {str(error)[:80]}"
        yield RawRecord(line, "", None, fault), size


def _sizes(array: Any) -> np.ndarray:
    """Return the bytes that each entry of an array takes as a Python object, about."""
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


def _as_record(number: int, value: dict[str, Any]) -> RawRecord:
    present = {key: entry for key, entry in value.items() if entry is not None}
    return RawRecord(number, json.dumps(present, ensure_ascii=False, default=str), present)


# Enough to tell text from binary data.
_HEAD_BYTES = 8192


def check_file(path: Path, uri: str) -> None:
    """Refuse a file that can't hold a dataset, by its beginning; UserError says why."""
    if path.is_dir():
        raise UserError(f"{uri} is a folder; give one JSONL, CSV or Parquet file")
    if not path.is_file():
        raise UserError(f"{uri} does not exist; check the path of the dataset")
    if not os.access(path, os.R_OK):
        raise UserError(f"{uri} can't be read; give yourself permission to read it")
    if path.stat().st_size == 0:
        raise NothingInside(f"{uri} is empty; there is nothing to train on")
    head = head_of(path, _HEAD_BYTES) if _form(path, uri) == "jsonl" else b""
    if b"\0" in head and not any(line.lstrip().startswith(b"{") for line in head.splitlines()):
        raise UserError(
            f"{uri} is a binary file (or UTF-16), not lines of JSON; unpack or convert it to "
            "UTF-8 text with one JSON object on each line"
        )


def _form(path: Path, uri: str) -> str:
    """Return the format of a file: `jsonl`, `csv` or `parquet`."""
    if head_of(path, 4) == b"PAR1":
        if compression_of(path):
            raise UserError(f"{uri} is a packed Parquet file; unpack it")
        return "parquet"
    ending = ending_of(path.name)
    if ending not in ENDINGS:
        more = "; a JSON list becomes lines by `jq -c '.[]'`" if ending == ".json" else ""
        raise UserError(
            f"{uri}: unknown format {ending or '(no ending)'}; use .jsonl, .csv, .tsv or "
            f".parquet, all but the last also as .gz or .zst{more}"
        )
    if ending in JSONL_ENDINGS:
        return "jsonl"
    return "csv" if ending in CSV_ENDINGS else "parquet"


def read_records(path: Path, name: str, csv: CsvForm | None = None) -> Iterator[RawRecord]:
    """Read the records of a file, one by one; UserError if it can't be read as a whole."""
    form = _form(path, name)
    if form == "jsonl":
        return read_jsonl(path, name)
    if form == "csv":
        return read_csv(path, name, csv or CsvForm())
    return read_parquet(path, name)


def count_records(path: Path) -> int | None:
    """Count records without the reader, 1 if the file is unusable, None for a CSV."""
    try:
        check_file(path, path.name)
        form = _form(path, path.name)
        if form == "parquet":
            return int(open_parquet(path, path.name).metadata.num_rows)
    except NothingInside:
        return 0
    except (UserError, OSError):
        return 1
    return count_lines(path) if form == "jsonl" else None


@dataclass
class OpenFile:
    """A file whose records can be read once; `alone` if its dataset has no other."""

    file: SourceFile
    path: Path
    own_holdout: bool
    alone: bool
    csv: CsvForm = field(default_factory=CsvForm)
    snapshot: Snapshot | None = None
    found: int = 0
    unusable: str | None = field(default=None, init=False)

    def records(self) -> Iterator[RawRecord]:
        """Read its records, one by one; UserError if the file is unusable and there is no other.

        Among other files, an unusable one is a record with a fault.
        """
        line = 0
        try:
            check_file(self.path, self.file.name)
            for record in read_records(self.path, self.file.name, self.csv):
                line = record.source_line
                yield self._noted(record)
        except UserError as error:
            if self.alone:
                raise
            if not isinstance(error, NothingInside):
                yield self._noted(RawRecord(line + 1, "", None, f"{BROKEN_FILE}: {error}"))

    def _noted(self, record: RawRecord) -> RawRecord:
        self.found += 1
        first, fault = self.found == 1, record.fault or ""
        self.unusable = (
            fault.partition(": ")[2] if first and fault.startswith(BROKEN_FILE) else None
        )
        return record

    def note(self, sha256: str, size: int, form: str | None) -> SourceNote:
        """Describe the file for the dataset's card, once it has been read."""
        return SourceNote(
            name=self.file.name,
            address=self.file.address,
            # A path of this machine says nothing elsewhere; a server's address is the pinned one.
            origin=None if self.file.local is not None else self.file.origin,
            own_holdout=self.own_holdout,
            sha256=sha256,
            bytes=size,
            form=form,
            dialect=str(self.csv.dialect_of(self.path)) if is_csv(self.path.name) else None,
            records=self.found,
            snapshot=self.snapshot,
        )

    @property
    def input_name(self) -> str:
        """Its name among the inputs of the evidence."""
        kind = "holdout" if self.own_holdout else "dataset"
        return kind if self.alone else f"{kind}/{self.file.name}"

    def count(self) -> int:
        """Count its records, without the reader where possible."""
        counted = count_records(self.path)
        return self.found if counted is None else counted


def open_files(config: DataConfig, scratch: Path) -> Iterator[OpenFile]:
    """Open every file of the dataset, then those of its hold-out.

    A fetched file is removed before the next one is opened. A file that is named as hold-out is
    not read as training data too.

    Raises:
        UserError: if an address names nothing, or no file of the dataset (or of its hold-out)
            holds a record that could be read.
        RetryableError: if a server failed.
    """
    held = find_files(config.holdouts) if config.holdouts else []
    origins = {file.origin for file in held}
    files = [file for file in find_files(config.sources) if file.origin not in origins]
    if not files:
        raise UserError(
            "every file of data.source is also named in data.holdout; nothing is left to train on"
        )
    csv = CsvForm(config.csv, config.csv_delimiter, config.csv_quoting)
    for group, own_holdout in ((files, False), (held, True)):
        opened = []
        for file in group:
            path, snapshot = file.fetch(scratch)
            opened.append(OpenFile(file, path, own_holdout, len(group) == 1, csv, snapshot))
            yield opened[-1]
            if file.local is None:
                shutil.rmtree(scratch, ignore_errors=True)
        _refuse_nothing(opened)


def _refuse_nothing(opened: list[OpenFile]) -> None:
    """Refuse a dataset of several files if none can be read."""
    if not opened or any(file.found and file.unusable is None for file in opened):
        return
    reason = next((file.unusable for file in opened if file.unusable), None)
    addresses = ", ".join(dict.fromkeys(file.file.address for file in opened))
    if reason is None:
        raise UserError(f"{addresses}: {len(opened)} files, and none holds a row to train on")
    if len(opened) == 1:
        raise UserError(f"{addresses} can't be read: {reason}")
    raise UserError(f"{addresses}: none of {len(opened)} files can be read; {reason}")
