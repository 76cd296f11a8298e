"""Reading a container's log: from where, how much, and on while it grows."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from localpods.objects import log_instant

_BLOCK = 1 << 18
# How often a followed log is looked at.
_POLL_S = 0.05
# The instant that the supervisor writes before each line, and the blank after it.
_STAMP_LENGTH = len(log_instant()) + 1


@dataclass(frozen=True)
class LogQuery:
    """Which part of a log to send.

    Attributes:
        follow: Go on until the container has ended.
        timestamps: Send the instant before each line.
        since: Only lines of this instant or later.
        tail: Only this many last lines.
        limit: Only this many bytes.
    """

    follow: bool = False
    timestamps: bool = False
    since: str | None = None
    tail: int | None = None
    limit: int | None = None


async def read_log(path: Path, query: LogQuery, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yield a log in pieces of whole lines.

    Args:
        path: The log file, which may not be there yet.
        query: Which part of it.
        ended: Tells whether nothing is written any more.

    Yields:
        Bytes to send.
    """
    left = query.limit
    async for lines in _lines(path, query, ended):
        piece = b"".join(_shown(line, query) for line in lines)
        if left is not None:
            piece = piece[:left]
            left -= len(piece)
        if piece:
            yield piece
        if left == 0:
            return


async def _lines(
    path: Path, query: LogQuery, ended: Callable[[], bool]
) -> AsyncIterator[list[bytes]]:
    """Yield the lines of a file as they come, each with its end."""
    while not path.exists():
        if ended() or not query.follow:
            return
        await asyncio.sleep(_POLL_S)
    with path.open("rb") as file:
        file.seek(0 if query.tail is None else _tail_offset(file, query.tail))
        half = b""
        while True:
            # Asked before reading: what is written until then is still read.
            last = ended() or not query.follow
            if data := file.read(_BLOCK):
                *lines, half = (half + data).split(b"\n")
                if lines:
                    yield [line + b"\n" for line in lines]
                # A long log must not hold up the other requests.
                await asyncio.sleep(0)
            elif last:
                return
            else:
                await asyncio.sleep(_POLL_S)


def _shown(line: bytes, query: LogQuery) -> bytes:
    if query.since is not None and line[: _STAMP_LENGTH - 1] < query.since.encode():
        return b""
    return line if query.timestamps else line[_STAMP_LENGTH:]


def _tail_offset(file: IO[bytes], count: int) -> int:
    """Return where the last lines of a file begin."""
    end = file.seek(0, os.SEEK_END)
    if count == 0:
        return end
    position = end
    # The file's last line ends with a line break, which is not one before it.
    wanted = count + 1
    while position > 0:
        start = max(0, position - _BLOCK)
        file.seek(start)
        block = file.read(position - start)
        found = block.count(b"\n")
        if found >= wanted:
            index = len(block)
            for _ in range(wanted):
                index = block.rindex(b"\n", 0, index)
            return start + index + 1
        wanted -= found
        position = start
    return 0
