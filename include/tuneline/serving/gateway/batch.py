"""A writer in a thread of its own: rows gather, then go to disk in one batch."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger("tuneline.gateway")

T = TypeVar("T")

_BATCH = 1000
# After a failed write: long enough not to spin, short enough to notice a freed disk.
_RETRY_AFTER_S = 1.0


class BatchWriter(Generic[T]):
    """Takes items without blocking and writes them in order, a batch at a time.

    A batch that cannot be written stays in front of the queue and is tried again;
    `error` says why while that lasts. The caller decides what a full queue means:
    `put` always takes the item.

    Args:
        name: of the thread, and of the writer in the log.
        write: writes a batch; an exception means that nothing of it was written.
        limit: how many items make the queue full.
        interval_s: time between two writes.
    """

    def __init__(
        self, name: str, write: Callable[[list[T]], None], *, limit: int, interval_s: float
    ) -> None:
        self._name = name
        self._write = write
        self._limit = limit
        self._interval_s = interval_s
        self._items: deque[T] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.error: str | None = None

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(self, item: T) -> None:
        """Take an item; from any thread, without waiting."""
        self._items.append(item)

    @property
    def pending(self) -> int:
        """Items not yet written."""
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether as many items wait as may."""
        return len(self._items) >= self._limit

    def close(self, timeout_s: float) -> list[T]:
        """Write what waits and stop.

        Returns:
            The items that could not be written in time.
        """
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return list(self._items)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s if self.error is None else _RETRY_AFTER_S):
            self._drain()
        # One more try for a writer that failed; then the rest is handed back.
        if not self._drain():
            self._drain()

    def _drain(self) -> bool:
        """Write all that waits; False when a batch could not be written."""
        while self._items:
            batch = [self._items[i] for i in range(min(_BATCH, len(self._items)))]
            try:
                self._write(batch)
            except Exception as error:
                if self.error is None:
                    log.error("%s cannot write: %s", self._name, error)
                self.error = str(error)
                return False
            self.error = None
            for _ in batch:
                self._items.popleft()
        return True
