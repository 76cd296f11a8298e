"""A container's log: one line per line of output, each after the time at which it was written."""

from __future__ import annotations

import asyncio
import datetime
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path

# Read at once; a long log must not delay the other requests.
_BLOCK = 1 << 18
# The interval at which a followed log is read.
_POLL_S = 0.05
# A longer line is cut in two: a program that never ends a line must not fill the memory.
_LINE_LIMIT = 1 << 20


def log_time(seconds_ago: float = 0.0) -> str:
    """Return a time in microseconds, of a fixed width so that strings compare like times."""
    time = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds_ago)
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# The time before each line and the blank after it.
_STAMP_LENGTH = len(log_time()) + 1


class LogWriter:
    """Writes output to a log."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._open_line = b""

    def feed(self, data: bytes) -> None:
        """Add output, which may end in the middle of a line."""
        *lines, self._open_line = (self._open_line + data).split(b"\n")
        if len(self._open_line) > _LINE_LIMIT:
            lines.append(self._open_line)
            self._open_line = b""
        self._write(lines)

    def close(self) -> None:
        """Write the last line if it is incomplete, and close the file."""
        if self._open_line:
            self._write([self._open_line])
        self._file.close()

    def _write(self, lines: list[bytes]) -> None:
        stamp = log_time().encode()
        try:
            self._file.write(b"".join(b"%s %s\n" % (stamp, line) for line in lines))
        except OSError:
            # A full disk costs lines of the log, not the process.
            return


async def read_log(
    path: Path,
    ended: Callable[[], bool],
    *,
    follow: bool = False,
    timestamps: bool = False,
    since: str = "",
    tail: int | None = None,
) -> AsyncIterator[bytes]:
    """Yield a log in pieces of whole lines.

    Args:
        path: the log file.
        ended: returns True once nothing is written any more.
        follow: True to continue until then.
        timestamps: True to send the time before each line.
        since: the time of the first line, as `log_time` writes it.
        tail: the number of last lines to send; None for all.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        if tail is not None:
            last_lines = deque(file, tail)
            file.seek(file.tell() - sum(map(len, last_lines)))
        half = b""
        while True:
            # Asked before reading: what has been written until then is still read.
            last = ended() or not follow
            if data := file.read(_BLOCK):
                *lines, half = (half + data).split(b"\n")
                lines = [line for line in lines if line[:_STAMP_LENGTH] >= since.encode()]
                start = 0 if timestamps else _STAMP_LENGTH
                if piece := b"".join(line[start:] + b"\n" for line in lines):
                    yield piece
                await asyncio.sleep(0)
            elif last:
                return
            else:
                await asyncio.sleep(_POLL_S)
