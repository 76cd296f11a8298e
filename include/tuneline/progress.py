"""Show the progress of long work: a bar in a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

# Often enough to show life in a task log, rarely enough not to fill it.
LOG_SECONDS = 10.0


def to_stderr(line: str) -> None:
    """Print a line to stderr at once."""
    print(line, file=sys.stderr, flush=True)


def track(
    items: Iterable[T], total: int | None, what: str, log: Callable[[str], None] = to_stderr
) -> Iterator[T]:
    """Yield the items and show the progress.

    Args:
        items: the items.
        total: their number, None if unknown.
        what: the name of the work.
        log: takes a line where there is no terminal.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as bar

        yield from bar(items, description=what, total=total, console=Console(stderr=True))
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last >= LOG_SECONDS:
            last = time.monotonic()
            passed = last - start
            left = f" of {total}, {passed / done * (total - done):.0f} s left" if total else ""
            log(f"{what}: {done}{left} ({passed:.0f} s)")
