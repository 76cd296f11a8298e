"""Writing in batches: a thread for items that go to disk, and a stream that gathers log lines."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from tuneline.errors import first_line

log = logging.getLogger("tuneline.gateway")

T = TypeVar("T")

_BATCH = 1000
# After a failed write: long enough not to spin, short enough to notice a freed disk.
_RETRY_AFTER_S = 1.0
# Some seconds of a busy gateway, while whoever reads its log is stuck.
_LOG_LINES = 20_000
_LOG_EVERY_S = 0.1


class UnfitItem(Exception):
    """A batch holds an item that can't be written, in whatever state the disk or server is."""


class BatchWriter(Generic[T]):
    """A queue that takes items without blocking and writes them in order, in batches.

    A batch that cannot be written stays at the front of the queue and is tried again;
    `error` states the reason meanwhile. A batch with an unfit item is halved until that item is
    alone, which is left out. The caller decides what a full queue means: `put` always takes the
    item.

    Args:
        name: name of the thread, and of the writer in the log.
        write: function that writes a batch; an exception means that it wrote nothing.
        limit: number of items that make the queue full.
        interval_s: time between two writes.

    Attributes:
        error: why nothing can be written at the moment, or None.
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
        """Start to write."""
        self._thread.start()

    def put(self, item: T) -> None:
        """Take an item, from any thread, without waiting."""
        self._items.append(item)

    @property
    def pending(self) -> int:
        """Number of items not yet written."""
        return len(self._items)

    @property
    def crowded(self) -> bool:
        """True if half as many items wait as may."""
        return len(self._items) >= self._limit / 2

    @property
    def full(self) -> bool:
        """True if as many items wait as may."""
        return len(self._items) >= self._limit

    def close(self, timeout_s: float) -> list[T]:
        """Write the waiting items and stop.

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
        # A writer that failed gets one more try; then the rest is handed back.
        if not self._drain():
            self._drain()

    def leave_out(self, item: T, why: UnfitItem) -> None:
        """Log an item that can never be written."""
        log.error("%s left an item out: %s", self._name, why)

    def _drain(self) -> bool:
        """Write all waiting items; return False if a batch could not be written."""
        most = _BATCH
        while self._items:
            batch = [self._items[i] for i in range(min(most, len(self._items)))]
            try:
                self._write(batch)
            except UnfitItem as unfit:
                if len(batch) > 1:
                    most = len(batch) // 2
                    continue
                self.leave_out(batch[0], unfit)
            except Exception as error:
                if self.error is None:
                    log.error("%s cannot write: %s", self._name, first_line(error))
                self.error = first_line(error)
                return False
            self.error = None
            most = _BATCH
            for _ in batch:
                self._items.popleft()
        return True


class GatheredLines(BatchWriter[str]):
    """A stream for a log handler, whose lines a thread writes together.

    A system call per line would give the interpreter to a waiting writer each time. What the file
    does not take, since its disk is full or its reader has gone, is lost and counted: a log must
    not stop the service.

    Args:
        file: descriptor of the open file; a stream's own buffer would keep what can't be written.
        lose: function that gets the number of texts that are lost.
    """

    def __init__(self, file: int, lose: Callable[[int], None]) -> None:
        self._file = file
        self._lose = lose
        super().__init__("gateway log", self._write_out, limit=_LOG_LINES, interval_s=_LOG_EVERY_S)

    def write(self, text: str) -> None:
        """Take a text, from any thread, without waiting."""
        if self.full:
            self._lose(1)
        else:
            self.put(text)

    def flush(self) -> None:
        """Do nothing; the handler asks for it after every line."""

    def _write_out(self, texts: list[str]) -> None:
        data = "".join(texts).encode("utf-8", "backslashreplace")
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            self._lose(len(texts))
