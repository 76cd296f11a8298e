"""Read the records of a CSV or TSV file; a bad record becomes one with a fault."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.config import CsvMapping
from tuneline.config.data import CsvDelimiter, CsvQuoting
from tuneline.data.sources.byte_streams import BrokenStream, head_of, lines
from tuneline.data.sources.csv_dialect import (
    DELIMITERS,
    HEAD_BYTES,
    Dialect,
    cut_records,
    find_dialect,
)
from tuneline.data.sources.csv_mapping import apply_mapping, check_columns, wanted_columns
from tuneline.data.sources.raw_record import (
    RawRecord,
    broken_file,
    invalid_utf8,
    line_too_long,
    show_bytes,
)
from tuneline.data.sources.source_file import ending_of
from tuneline.errors import UserError

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class CsvForm:
    """What the configuration says about CSV files.

    Attributes:
        mapping: the templates that make turns of columns; None takes columns as fields.
        delimiter: the delimiter of every file, or `auto`.
        quoting: the quoting of every file, or `auto`.
    """

    mapping: CsvMapping | None = None
    delimiter: CsvDelimiter = "auto"
    quoting: CsvQuoting = "auto"

    def dialect_of(self, path: Path) -> Dialect:
        """Return the dialect of a file, which is found in its beginning unless it is named.

        Raises:
            UserError: if a template of the mapping is malformed.
        """
        return find_dialect(
            head_of(path, HEAD_BYTES).removeprefix(_BOM),
            delimiter=self.delimiter,
            quoting=self.quoting,
            tab_first=ending_of(path.name) == ".tsv",
            columns=wanted_columns(self.mapping) if self.mapping is not None else (),
        )


def read_csv(path: Path, name: str, form: CsvForm) -> Iterator[RawRecord]:
    """Read the records of a file; see `records.read_records`."""
    csv.field_size_limit(1 << 30)
    dialect, mapping = form.dialect_of(path), form.mapping
    records = cut_records(lines(path), dialect)
    try:
        first = next(records)
        header = dialect.fields(first.data.removeprefix(_BOM))
    except BrokenStream as error:
        raise UserError(f"{name} can't be read: {error}; write the file again") from None
    except (StopIteration, csv.Error, UnicodeDecodeError):
        raise UserError(
            f"{name}: its first line is not a CSV header in UTF-8; name the columns there"
        ) from None
    if len(set(header)) != len(header) or not all(header):
        raise UserError(
            f"{name}: every column needs a name of its own, line 1 has {header}, read with "
            f"{dialect} (data.csv_delimiter, data.csv_quoting)"
        )
    if mapping is not None:
        check_columns(mapping, header, name, str(dialect))
    last = first
    try:
        for last in records:
            if last.size:
                yield line_too_long(last.number, last.data, last.size)
            else:
                yield _csv_record(last.number, last.data, header, dialect, mapping)
    except BrokenStream as error:
        yield broken_file(last.number + last.lines, error)


def _csv_record(
    number: int, data: bytes, header: list[str], dialect: Dialect, mapping: CsvMapping | None
) -> RawRecord:
    raw = show_bytes(data)
    if not data.strip():
        return RawRecord(number, raw, None, "blank_line")
    try:
        fields = dialect.fields(data)
    except UnicodeDecodeError as error:
        return invalid_utf8(number, data, error)
    except csv.Error as error:
        return RawRecord(number, raw, None, f"broken_csv: {error}")
    if len(fields) != len(header):
        return RawRecord(number, raw, None, _ragged(len(fields), len(header), dialect))
    value: dict[str, Any] = dict(zip(header, fields, strict=True))
    if mapping is None:
        return RawRecord(number, raw, value)
    label = value[mapping.label].strip() or None if mapping.label else None
    thread = value[mapping.conversation].strip() or None if mapping.conversation else None
    turns = apply_mapping(mapping, value)
    return RawRecord(number, raw, turns, label=label, conversation=thread)


def _ragged(found: int, columns: int, dialect: Dialect) -> str:
    """Return the fault of a record with too few or too many fields."""
    fault = f"broken_csv: {found} fields under {columns} columns, "
    if found < columns:
        return f"{fault}{columns - found} too few (a value or a delimiter is missing)"
    delimiter = DELIMITERS[dialect.delimiter]
    return f"{fault}{found - columns} too many (a value that holds {delimiter!r} needs quotes)"
