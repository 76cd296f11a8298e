"""Plain, gzip and zstd files in blocks and lines, and one raw record with its fault."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.errors import UserError

# Bytes unpacked at once; a broken zstd stream may lose up to this number before the break.
BLOCK = 1 << 16
# A longer line can't be a row; it is not held in memory whole.
MAX_LINE_BYTES = 64 << 20
GZIP, ZSTD = "gzip", "zstd"
# A file may unpack to so many bytes whatever its size, and to so many for each of its own. Text
# that says the same over and over takes a two hundredth of its size, a bomb a thousandth.
_UNPACKED_BYTES, _UNPACKED_RATIO = 1 << 30, 500


class BrokenStream(ValueError):
    """A stream breaks off for a reason; `partial` are the bytes of the line in which it does."""

    partial: bytes = b""


def most_unpacked(path: Path) -> int:
    """Return the bytes that a packed file may unpack to."""
    return max(_UNPACKED_BYTES, _UNPACKED_RATIO * path.stat().st_size)


def compression_of(path: Path) -> str | None:
    """Return the compression that a file's first bytes show (RFC 1952, RFC 8878), or None."""
    with path.open("rb") as handle:
        head = handle.read(4)
    if head.startswith(b"\x1f\x8b"):
        return GZIP
    # A zstd file may begin with a frame to be skipped, as parallel compressors write it.
    skippable = head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
    return ZSTD if head.startswith(b"\x28\xb5\x2f\xfd") or skippable else None


def blocks(path: Path) -> Iterator[bytes]:
    """Read unpacked bytes; BrokenStream, after what there is, if damaged or too many."""
    compression = compression_of(path)
    if compression is None:
        with path.open("rb") as handle:
            while block := handle.read(BLOCK):
                yield block
        return
    left = most = most_unpacked(path)
    for block in _gzip_blocks(path) if compression == GZIP else _zstd_blocks(path):
        left -= len(block)
        if left < 0:
            raise BrokenStream(
                f"its {compression} stream unpacks to more than {most} bytes, which a file of its "
                "size hardly does; unpack it if it is meant"
            )
        yield block


def _gzip_blocks(path: Path) -> Iterator[bytes]:
    with gzip.open(path) as stream:
        try:
            while block := stream.read1(BLOCK):
                yield block
        except EOFError:
            raise BrokenStream("its gzip stream ends early") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise BrokenStream(f"its gzip stream is damaged ({error})") from None


def _zstd_blocks(path: Path) -> Iterator[bytes]:
    import pyarrow as pa

    with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, ZSTD) as stream:
        try:
            while block := stream.read(BLOCK):
                yield block
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise BrokenStream(f"its zstd stream is damaged ({reason})") from None


def head_of(path: Path, size: int) -> bytes:
    """Return the first unpacked bytes of a file, fewer if it ends or breaks off before."""
    found = b""
    try:
        for block in blocks(path):
            found += block
            if len(found) >= size:
                break
    except BrokenStream:
        pass
    return found[:size]


def lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """Read the lines of a file without their newlines, each with its true length in bytes.

    A line over `MAX_LINE_BYTES` is cut there and so shorter than its length.

    Raises:
        BrokenStream: if the file breaks off; its `partial` is the line so far.
    """
    pending: list[bytes] = []
    size = 0
    try:
        for block in blocks(path):
            first, *rest = block.split(b"\n")
            if size < MAX_LINE_BYTES:
                pending.append(first[: MAX_LINE_BYTES - size])
            size += len(first)
            if not rest:
                continue
            yield b"".join(pending), size
            for line in rest[:-1]:
                yield line, len(line)
            pending, size = [rest[-1]], len(rest[-1])
    except BrokenStream as error:
        error.partial = b"".join(pending)
        raise
    if size:
        yield b"".join(pending), size


def count_lines(path: Path) -> int:
    """Count lines, a break as one; independent of `lines`, whose count is compared with it."""
    found, last = 0, b"\n"
    try:
        for block in blocks(path):
            found += block.count(b"\n")
            last = block[-1:]
    except BrokenStream:
        return found + 1
    return found + (last != b"\n")


# Fault of what can't be read because its file is damaged.
BROKEN_FILE = "broken_file"


class NothingInside(UserError):
    """A file is sound, but holds no record."""


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record as it was read: its original text, and its value or fault (`code: detail`).

    A CSV's header is line 1, and a record has the line on which it starts; a row of Parquet has its
    number.
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
