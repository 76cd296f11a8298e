"""Read JSON lines; a bad line becomes a record with a fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tuneline.data.sources.byte_streams import MAX_LINE_BYTES, BrokenStream, lines
from tuneline.data.sources.raw_record import (
    NothingInside,
    RawRecord,
    broken_file,
    invalid_utf8,
    line_too_long,
    show_bytes,
)
from tuneline.data.sources.strict_json import DuplicateKey, parse_json


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
