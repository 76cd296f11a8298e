"""Sheets that people fill in: written for a spreadsheet, and read as whatever it saved.

A sheet is CSV with commas, semicolons, tabs or bars, in UTF-8 or UTF-16, with or without a first
line `sep=;`, or JSON lines, or an Excel workbook. It is read whole or refused with file and line.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import zip_longest
from typing import Any

from tuneline.errors import UserError

# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA = tuple("=+-@\t\r")
_MARKED = tuple(f"'{sign}" for sign in _FORMULA)
# A cell may be as long as an answer.
_LONGEST_CELL = 10_000_000
_DELIMITERS = ",;\t|"
# A workbook that unpacks to more is no sheet that a person filled.
_MOST_UNPACKED = 1 << 28

_Lines = Iterator[tuple[int, list[str]]]


@dataclass(frozen=True)
class Entry:
    """A row of a sheet: where it is, for errors, and its cells by the name of their column."""

    where: str
    cells: dict[str, Any]

    def text(self, name: str) -> str:
        """Return a cell without spaces around it, empty if there is none; UserError if not text."""
        value = self.cells.get(name)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{self.where}: {name} is a {type(value).__name__}, not text")
        return (value or "").strip()


def written(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows as CSV that a spreadsheet opens; no cell is a formula."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(columns)
    for row in rows:
        cells = [str(row.get(name, "")) for name in columns]
        writer.writerow([f"'{text}" if text.startswith(_FORMULA) else text for text in cells])
    # Spreadsheets take a file for UTF-8 only if it begins with its mark.
    return out.getvalue().encode("utf-8-sig")


def read_sheet(raw: bytes, name: str, needed: Sequence[str], advice: str) -> list[Entry]:
    """Read the rows of a sheet, without empty ones; UserError names file and line of a fault.

    `advice` says what to do if a needed column is missing; JSON lines may leave columns out.
    """
    if raw.startswith(b"PK\x03\x04"):
        return list(_entries(_workbook(raw, name), name, needed, advice))
    text, first = _text(raw, name)
    if text.lstrip().startswith("{"):
        return list(_json_entries(text, name))
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        lines = _csv_lines(text, _delimiter(text, needed), name, first)
        return list(_entries(lines, name, needed, advice))
    finally:
        csv.field_size_limit(before)


def _text(raw: bytes, name: str) -> tuple[str, int]:
    """Return the text of a sheet, and the line on which its columns are."""
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        raise UserError(
            f"{name} is not UTF-8 text; save it as `CSV UTF-8` in the spreadsheet"
        ) from None
    first, _, rest = text.partition("\n")
    return (rest, 2) if first.strip().lower().startswith("sep=") else (text, 1)


def _delimiter(text: str, needed: Sequence[str]) -> str:
    """Return the delimiter under which the first line has most of the columns."""
    first = text.partition("\n")[0]

    def fits(delimiter: str) -> tuple[int, int]:
        columns = {column.strip(' \r"') for column in first.split(delimiter)}
        return len(columns.intersection(needed)), first.count(delimiter)

    return max(_DELIMITERS, key=fits)


def _csv_lines(text: str, delimiter: str, name: str, first: int) -> _Lines:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = first
    try:
        for cells in reader:
            yield line, cells
            # A cell may hold line ends.
            line = reader.line_num + first
    except csv.Error as error:
        raise UserError(f"{name}, line {line}: not valid CSV: {error}") from None


def _workbook(raw: bytes, name: str) -> _Lines:
    """Yield the rows of the first sheet of a workbook."""
    try:
        from openpyxl import load_workbook

        with zipfile.ZipFile(io.BytesIO(raw)) as packed:
            size = sum(entry.file_size for entry in packed.infolist())
        if size > _MOST_UNPACKED:
            raise UserError(f"{name} unpacks to {size >> 20} MiB; give the sheet alone, or as CSV")
        rows = load_workbook(io.BytesIO(raw), read_only=True, data_only=True).worksheets[0].rows
        for line, row in enumerate(rows, 1):
            yield line, [_shown(cell.value) for cell in row]
    except UserError:
        raise
    # The library raises whatever its parsers meet in a file that is no workbook.
    except Exception as error:
        raise UserError(f"{name} can't be read as a workbook: {error}; save it as CSV") from None


def _shown(value: Any) -> str:
    """Return the value of a workbook's cell as CSV would hold it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, date):
        return value.isoformat()
    return "" if value is None else str(value)


def _entries(rows: _Lines, name: str, needed: Sequence[str], advice: str) -> Iterator[Entry]:
    line, header = next(rows, (1, []))
    columns = [column.strip() for column in header]
    missing = [column for column in needed if column not in columns]
    if missing:
        raise UserError(
            f"{name}, line {line}: the columns {' and '.join(missing)} are missing; {advice}"
        )
    repeated = sorted({column for column in columns if column and columns.count(column) > 1})
    if repeated:
        raise UserError(f"{name}, line {line}: the column {repeated[0]} is there twice; keep one")
    for number, cells in rows:
        where = f"{name}, line {number}"
        if any(cells[len(columns) :]):
            raise UserError(f"{where}: more cells than columns; quote the texts")
        if any(cells):
            # Without the mark that keeps a cell from being a formula.
            texts = (text[text.startswith(_MARKED) :] for text in cells[: len(columns)])
            yield Entry(where, dict(zip_longest(columns, texts, fillvalue="")))


def _json_entries(text: str, name: str) -> Iterator[Entry]:
    # JSON may hold other line separators of Unicode as they are.
    for line, one in enumerate(text.split("\n"), 1):
        if not one.strip():
            continue
        try:
            cells = json.loads(one)
        except (ValueError, RecursionError):
            cells = None
        if not isinstance(cells, dict):
            raise UserError(f"{name}, line {line}: expected a JSON object")
        yield Entry(f"{name}, line {line}", cells)
