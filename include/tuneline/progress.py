"""Show the progress of long work: a bar in a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

# Often enough to show life in a task log, rarely enough not to fill it.
LOG_SECONDS = 10.0


def track(items: Iterable[T], total: int | None, what: str) -> Iterator[T]:
    """Yield the items and show the progress.

    Args:
        items: the items.
        total: their number, None if unknown.
        what: the name of the work.
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
            of = f" of {total}" if total else ""
            print(f"{what}: {done}{of} ({last - start:.0f} s)", file=sys.stderr, flush=True)
