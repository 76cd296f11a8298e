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
