"""Read raw records from JSONL, CSV and Parquet, each with its file, line and original text.

JSONL and CSV may be packed by gzip or zstd. One bad byte, line or record never stops the rest: it
becomes a record with a fault, and so does what is lost where a file breaks off. What makes a
whole file unusable (empty, not a table) is an error in one sentence, or, among other files, a
record with a fault.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.config import CsvMapping
from tuneline.data.sources.byte_streams import (
    MAX_LINE_BYTES,
    BrokenStream,
    compression_of_file,
    count_lines,
    head_of,
    lines,
)
from tuneline.data.sources.csv_mapping import apply_mapping, check_columns
from tuneline.data.sources.source_file import CSV_ENDINGS, ENDINGS, JSONL_ENDINGS, ending_of
from tuneline.errors import UserError, first_line

# Enough to tell text from what a program wrote for itself.
_HEAD_BYTES = 8192
# A quoted CSV field may span lines; an opening quote that is never closed must not swallow the
# file, so a record that is longer than this counts as broken.
MAX_CSV_RECORD_LINES = 1000
# Deeper than any conversation; beyond, showing a value may exhaust the interpreter's stack.
MAX_DEPTH = 100
# Fault of what can't be read because its file is damaged.
BROKEN_FILE = "broken_file"
_PARQUET_BATCH = 1024


class DuplicateKey(ValueError):
    """A JSON object names a key twice."""


class NothingInside(UserError):
    """A file is sound, but holds no record."""


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record as it was read.

    Attributes:
        source_line: from 1; in a CSV the line its record starts on, the header being line 1;
            in a Parquet file the number of the row.
        raw: the original text; bytes that are no UTF-8 are shown as `\\xhh`.
        value: the parsed record, None with a fault.
        fault: why it could not be read (`code: detail`), None when it could.
        label: its class where a CSV mapping names the column.
    """

    source_line: int
    raw: str
    value: Any
    fault: str | None = None
    label: str | None = None


def check_file(path: Path, uri: str) -> None:
    """Refuse a file that can hold no dataset, without reading more than its beginning.

    Args:
        path: the file.
        uri: what errors call it.

    Raises:
        UserError: it is missing, a folder, not readable, empty, or of another format.
    """
    if path.is_dir():
        raise UserError(f"{uri} is a folder; give one JSONL, CSV or Parquet file")
    if not path.is_file():
        raise UserError(f"{uri} does not exist; check the path of the dataset")
    if not os.access(path, os.R_OK):
        raise UserError(f"{uri} can't be read; give yourself permission to read it")
    if path.stat().st_size == 0:
        raise NothingInside(f"{uri} is empty; there is nothing to train on")
    if _form(path, uri) == "jsonl":
        head = head_of(path, _HEAD_BYTES)
        if b"\0" in head and not _has_object(head):
            raise UserError(
                f"{uri} is a binary file (or UTF-16), not lines of JSON; unpack or convert it to "
                "UTF-8 text with one JSON object on each line"
            )


def _has_object(head: bytes) -> bool:
    return any(line.lstrip().startswith(b"{") for line in head.splitlines())


def _form(path: Path, uri: str) -> str:
    """`jsonl`, `csv` or `parquet`.

    Raises:
        UserError: it is none of these, or a packed Parquet file.
    """
    if head_of(path, 4) == b"PAR1":
        if compression_of_file(path):
            raise UserError(f"{uri} is a packed Parquet file; unpack it")
        return "parquet"
    ending = ending_of(path.name)
    if ending not in ENDINGS:
        more = "; a JSON list becomes lines by `jq -c '.[]'`" if ending == ".json" else ""
        raise UserError(
            f"{uri}: unknown format {ending or '(no ending)'}; use .jsonl, .csv or .parquet, "
            f"the first two also as .gz or .zst{more}"
        )
    if ending in JSONL_ENDINGS:
        return "jsonl"
    return "csv" if ending in CSV_ENDINGS else "parquet"


def read_records(path: Path, name: str, mapping: CsvMapping | None) -> Iterator[RawRecord]:
    """Read the records of a file, one by one.

    Args:
        path: the file.
        name: what errors call it.
        mapping: how the columns of a CSV become turns; None takes its columns as fields.

    Raises:
        UserError: the format is unknown, or the file as a whole can't be read.
    """
    form = _form(path, name)
    if form == "jsonl":
        return _read_jsonl(path, name)
    if form == "csv":
        return _read_csv(path, name, mapping)
    return _read_parquet(path, name)


def records_among_others(path: Path, name: str, mapping: CsvMapping | None) -> Iterator[RawRecord]:
    """Read a file that is one of several: what makes it unusable is a record with a fault.

    A file without a record gives none.
    """
    line = 0
    try:
        check_file(path, name)
        for record in read_records(path, name, mapping):
            line = record.source_line
            yield record
    except NothingInside:
        return
    except UserError as error:
        yield RawRecord(line + 1, "", None, f"{BROKEN_FILE}: {error}")


def count_records(path: Path) -> int | None:
    """Number of records in a file, counted without parsing them; None for a CSV.

    It is what the reader's own count is held against. A file that can't be read counts as one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        check_file(path, path.name)
        form = _form(path, path.name)
        if form == "parquet":
            return int(pq.ParquetFile(path).metadata.num_rows)
    except NothingInside:
        return 0
    except (UserError, pa.ArrowException, OSError):
        return 1
    return count_lines(path) if form == "jsonl" else None


def parse_json(text: str) -> Any:
    """Parse JSON strictly: no repeated keys, no NaN, no infinity, no endless nesting.

    Raises:
        ValueError: it is not JSON; `DuplicateKey` for a repeated key.
        RecursionError: it is nested too deeply.
    """
    value = json.loads(
        text, object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite
    )
    if text.count("[") + text.count("{") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise RecursionError(f"more than {MAX_DEPTH} levels")
    return value


def _deeper(value: Any, limit: int) -> bool:
    """Whether a value has more levels than the limit."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            entry
            for holder in level
            if isinstance(holder, dict | list)
            for entry in (holder.values() if isinstance(holder, dict) else holder)
        ]
        if not level:
            return False
    return True


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond any number")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKey(key)
            seen.add(key)
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def show_bytes(data: bytes) -> str:
    """Decode UTF-8, other bytes as `\\xhh`."""
    return data.decode("utf-8", "backslashreplace")


def _read_jsonl(path: Path, name: str) -> Iterator[RawRecord]:
    blank = True
    number = 0
    try:
        for number, (line, size) in enumerate(lines(path), 1):
            data = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            record = _json_record(number, data.rstrip(b"\r\n"), size)
            blank = blank and record.fault == "blank_line"
            yield record
    except BrokenStream as error:
        yield _broken(number + 1, error)
        return
    if blank:
        raise NothingInside(f"{name} holds blank lines only; there is nothing to train on")


def _broken(number: int, error: BrokenStream) -> RawRecord:
    """What is lost from the line on in which a file broke."""
    fault = f"{BROKEN_FILE}: {error}, what comes after this line is lost"
    return RawRecord(number, show_bytes(error.partial), None, fault)


def _too_long(number: int, data: bytes, size: int) -> RawRecord:
    fault = f"line_too_long: {size} bytes, more than {MAX_LINE_BYTES}"
    return RawRecord(number, show_bytes(data), None, fault)


def _json_record(number: int, data: bytes, size: int) -> RawRecord:
    if size > MAX_LINE_BYTES:
        return _too_long(number, data, size)
    if not data.strip():
        return RawRecord(number, show_bytes(data), None, "blank_line")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = data[error.start]
        fault = f"invalid_utf8: byte 0x{bad:02x} at position {error.start}"
        return RawRecord(number, show_bytes(data), None, fault)
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


def _read_csv(path: Path, name: str, mapping: CsvMapping | None) -> Iterator[RawRecord]:
    csv.field_size_limit(1 << 30)
    records = _csv_records(path)
    try:
        first = next(records)
        header = _fields(first.data.removeprefix(b"\xef\xbb\xbf"))
    except BrokenStream as error:
        raise UserError(f"{name} can't be read: {error}; write the file again") from None
    except (StopIteration, csv.Error, UnicodeDecodeError):
        raise UserError(
            f"{name}: its first line is no CSV header in UTF-8; name the columns there"
        ) from None
    if len(set(header)) != len(header) or not all(header):
        raise UserError(f"{name}: every column needs a name of its own, line 1 has {header}")
    if mapping is not None:
        check_columns(mapping, header, name)
    last = first
    try:
        for last in records:
            if last.size:
                yield _too_long(last.number, last.data, last.size)
            else:
                yield _csv_record(last.number, last.data, header, mapping)
    except BrokenStream as error:
        yield _broken(last.number + last.lines, error)


@dataclass(frozen=True, slots=True)
class _CsvText:
    """The text of one CSV record.

    Attributes:
        number: the line it starts on.
        lines: how many it spans.
        data: its bytes, a line over the limit cut.
        size: how many it had, 0 when no line was cut.
    """

    number: int
    lines: int
    data: bytes
    size: int


def _csv_records(path: Path) -> Iterator[_CsvText]:
    """Cut lines into records: a record ends where its quotes are balanced."""
    source = lines(path)
    ahead: deque[tuple[bytes, int]] = deque()
    broken: BrokenStream | None = None
    number = 1
    while True:
        taken = 0
        quotes = 0
        # A record has one line, and more as long as its quotes are open.
        while taken == 0 or (quotes % 2 and taken < MAX_CSV_RECORD_LINES):
            if taken == len(ahead):
                if broken is not None:
                    break
                try:
                    ahead.append(next(source))
                except StopIteration:
                    break
                except BrokenStream as error:
                    broken = error
                    break
            quotes += ahead[taken][0].count(b'"')
            taken += 1
        if not taken:
            break
        if quotes % 2:
            taken = 1
        parts = [ahead.popleft() for _ in range(taken)]
        data = b"\n".join(part for part, _ in parts).rstrip(b"\r")
        cut = any(size > len(part) for part, size in parts)
        yield _CsvText(number, taken, data, sum(size for _, size in parts) if cut else 0)
        number += taken
    if broken is not None:
        raise broken


def _fields(data: bytes) -> list[str]:
    rows = list(csv.reader(io.StringIO(data.decode("utf-8"), newline=""), strict=True))
    if len(rows) != 1:
        raise csv.Error("not one record")
    return rows[0]


def _csv_record(
    number: int, data: bytes, header: list[str], mapping: CsvMapping | None
) -> RawRecord:
    raw = show_bytes(data)
    if not data.strip():
        return RawRecord(number, raw, None, "blank_line")
    try:
        fields = _fields(data)
    except UnicodeDecodeError as error:
        fault = f"invalid_utf8: byte 0x{data[error.start]:02x} at position {error.start}"
        return RawRecord(number, raw, None, fault)
    except csv.Error as error:
        return RawRecord(number, raw, None, f"broken_csv: {error}")
    if len(fields) != len(header):
        fault = f"broken_csv: {len(fields)} fields under {len(header)} columns"
        return RawRecord(number, raw, None, fault)
    value: dict[str, Any] = dict(zip(header, fields, strict=True))
    if mapping is None:
        return RawRecord(number, raw, value)
    label = value[mapping.label].strip() or None if mapping.label else None
    return RawRecord(number, raw, apply_mapping(mapping, value), label=label)


def _read_parquet(path: Path, name: str) -> Iterator[RawRecord]:
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
            for batch in file.iter_batches(_PARQUET_BATCH, row_groups=[group]):
                for record in _parquet_records(number, batch):
                    number = record.source_line
                    yield record
        except (pa.ArrowException, OSError) as error:
            reason = first_line(error).rstrip(".")
            fault = f"{BROKEN_FILE}: its row group {group} is damaged ({reason})"
        # Rows of a damaged group are told one by one: the file says how many there are.
        while number < last:
            number += 1
            yield RawRecord(number, "", None, fault)


def _parquet_records(number: int, batch: Any) -> Iterator[RawRecord]:
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError):
        # One value spoils the batch; row by row only its own row is lost.
        for index in range(batch.num_rows):
            yield _parquet_record(number + index + 1, batch.slice(index, 1))
        return
    for index, value in enumerate(values, 1):
        yield _as_record(number + index, value)


def _parquet_record(number: int, one: Any) -> RawRecord:
    try:
        value = one.to_pylist()[0]
    except UnicodeDecodeError:
        return RawRecord(number, "", None, "invalid_utf8: a text column is no UTF-8")
    except (ValueError, OverflowError) as error:
        return RawRecord(number, "", None, f"broken_value: {str(error)[:80]}")
    return _as_record(number, value)


def _as_record(number: int, value: dict[str, Any]) -> RawRecord:
    present = {key: entry for key, entry in value.items() if entry is not None}
    return RawRecord(number, json.dumps(present, ensure_ascii=False, default=str), present)
