"""The rows of a file: JSON, JSON lines or CSV, each with its line."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from tuneline.errors import UserError
from tuneline.serving.usage_import.call import RowError

# The line where a row begins, and the row or why it is none.
Line: TypeAlias = "tuple[int, Any | RowError]"

_BROKEN_TEXT = "not valid UTF-8"
_SPACE = " \t\r\n"


def rows_of(path: Path) -> Iterator[Line]:
    """Read the rows of a file; its name or, failing that, its first character tells the form.

    Raises:
        UserError: if it can't be read, or is a JSON list or a CSV file that is broken as a whole.
    """
    try:
        # Broken bytes become characters that no text has, so that only their row is rejected.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if path.suffix == ".csv":
                yield from _csv_rows(path, file)
            elif _begins_list(file):
                yield from _json_list(path, file.read())
            else:
                yield from json_lines(file)
    except OSError as error:
        raise UserError(f"{path}: the file can't be read: {error.strerror}") from None


def json_lines(file: TextIO) -> Iterator[Line]:
    """Read JSON lines; empty lines are none."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield number, _checked(line) or json.loads(line)
        except (ValueError, RecursionError):
            yield number, RowError("not JSON")


def _begins_list(file: TextIO) -> bool:
    begins = file.read(1)
    while begins and begins in _SPACE:
        begins = file.read(1)
    file.seek(0)
    return begins == "["


def _json_list(path: Path, text: str) -> Iterator[Line]:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: the JSON list is broken: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{path}: the JSON list is nested too deeply") from None
    decoder, at, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    while True:
        while text[at] in _SPACE + ",":
            at += 1
        if text[at] == "]":
            return
        line += text.count("\n", counted, at)
        counted = at
        row, end = decoder.raw_decode(text, at)
        yield line, _checked(text[at:end]) or row
        at = end


def _csv_rows(path: Path, file: TextIO) -> Iterator[Line]:
    # A prompt may be longer than the module's limit of 128 KiB for a field.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(file, strict=True)
    try:
        head = next(reader, None)
        if not head:
            raise UserError(f"{path}: the CSV file has no line of column names")
        begins = reader.line_num + 1
        for cells in reader:
            if cells:
                yield begins, _csv_row(head, cells)
            begins = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: the CSV file is broken: {error}") from None


def _csv_row(head: list[str], cells: list[str]) -> Any:
    if len(cells) != len(head):
        return RowError(f"{len(cells)} cells where the first line names {len(head)} columns")
    return _checked("".join(cells)) or dict(zip(head, cells, strict=True))


def _checked(text: str) -> RowError | None:
    return None if text.isascii() or not _has_surrogates(text) else RowError(_BROKEN_TEXT)


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
