"""One record as it was read, and the faults that every reader reports alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuneline.data.sources.byte_streams import MAX_LINE_BYTES, BrokenStream
from tuneline.errors import UserError

# Fault of what can't be read because its file is damaged.
BROKEN_FILE = "broken_file"


class NothingInside(UserError):
    """A file is sound, but holds no record."""


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record as it was read.

    Attributes:
        source_line: its line from 1; in a CSV the line on which the record starts, the header
            being line 1; in a Parquet file the number of the row.
        raw: the original text; bytes that are not UTF-8 are written as `\\xhh`.
        value: the parsed record, None with a fault.
        fault: the reason why it could not be read (`code: detail`), None if it could.
        label: its class, if a CSV mapping names the column.
        conversation: id of its conversation, if a CSV mapping names the column.
    """

    source_line: int
    raw: str
    value: Any
    fault: str | None = None
    label: str | None = None
    conversation: str | None = None


def show_bytes(data: bytes) -> str:
    """Decode UTF-8, other bytes as `\\xhh`."""
    return data.decode("utf-8", "backslashreplace")


def invalid_utf8(number: int, data: bytes, error: UnicodeDecodeError) -> RawRecord:
    """Return the record of a line that is not UTF-8."""
    fault = f"invalid_utf8: byte 0x{data[error.start]:02x} at position {error.start}"
    return RawRecord(number, show_bytes(data), None, fault)


def broken_file(number: int, error: BrokenStream) -> RawRecord:
    """Return the record of what is lost from the line on in which a file breaks off."""
    fault = f"{BROKEN_FILE}: {error}, what comes after this line is lost"
    return RawRecord(number, show_bytes(error.partial), None, fault)


def line_too_long(number: int, data: bytes, size: int) -> RawRecord:
    """Return the record of a line of `size` bytes, of which `data` was read."""
    fault = f"line_too_long: {size} bytes, more than {MAX_LINE_BYTES}"
    return RawRecord(number, show_bytes(data), None, fault)
