"""Python's search for reference cycles, made rare while rows are in memory.

A dataset is millions of lists, dicts and strings that refer to each other without cycles. Each
search for cycles walks through many of them and finds nothing: a seventh of the data phase.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# New objects before the youngest are searched, and how many searches before the older ones are.
THRESHOLDS = (200_000, 20, 100)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Search for cycles rarely, for as long as this lasts."""
    before = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def no_collections() -> Iterator[None]:
    """Search for no cycles for as long as this lasts: a search stops the thread that takes times.

    In a process that has loaded torch it takes 0.1 s and more.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
