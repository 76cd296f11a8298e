"""Read the records of a CSV file; a bad record becomes one with a fault."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.config import CsvMapping
from tuneline.data.sources.byte_streams import BrokenStream, lines
from tuneline.data.sources.csv_mapping import apply_mapping, check_columns
from tuneline.data.sources.raw_record import (
    RawRecord,
    broken_file,
    invalid_utf8,
    line_too_long,
    show_bytes,
)
from tuneline.errors import UserError

# A quoted CSV field may span lines; an opening quote that is never closed must not swallow the
# file, so a record that is longer than this counts as broken.
MAX_CSV_RECORD_LINES = 1000


def read_csv(path: Path, name: str, mapping: CsvMapping | None) -> Iterator[RawRecord]:
    """Read the records of a file; see `records.read_records`."""
    csv.field_size_limit(1 << 30)
    records = _csv_records(path)
    try:
        first = next(records)
        header = _fields(first.data.removeprefix(b"\xef\xbb\xbf"))
    except BrokenStream as error:
        raise UserError(f"{name} can't be read: {error}; write the file again") from None
    except (StopIteration, csv.Error, UnicodeDecodeError):
        raise UserError(
            f"{name}: its first line is not a CSV header in UTF-8; name the columns there"
        ) from None
    if len(set(header)) != len(header) or not all(header):
        raise UserError(f"{name}: every column needs a name of its own, line 1 has {header}")
    if mapping is not None:
        check_columns(mapping, header, name)
    last = first
    try:
        for last in records:
            if last.size:
                yield line_too_long(last.number, last.data, last.size)
            else:
                yield _csv_record(last.number, last.data, header, mapping)
    except BrokenStream as error:
        yield broken_file(last.number + last.lines, error)


@dataclass(frozen=True, slots=True)
class _CsvText:
    """The text of one CSV record.

    Attributes:
        number: the line on which it starts.
        lines: the number of its lines.
        data: its bytes; a line over the limit is cut.
        size: its true size in bytes if a line was cut, else 0.
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
        return invalid_utf8(number, data, error)
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
