"""The usage ledger: one row per attempt at an upstream, in SQLite or PostgreSQL.

An attempt is billed whether or not its answer reached the client, since the machine did the
work: a request that fell back has two rows. Where the upstream reported no usage, the gateway
counts the tokens and marks the row `estimated`.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Generic, Protocol, TypeVar

from tuneline.errors import first_line
from tuneline.serving.gateway.ledger.database import UNFIT, LedgerLocation, UsageRow, open_writer

log = logging.getLogger("tuneline.gateway")

T = TypeVar("T")
_BATCH = 1000
# After a failed write: long enough not to spin, short enough to notice a freed disk.
_RETRY_AFTER_S = 1.0
# Some seconds of a busy gateway, while whoever reads its log is stuck.
_LOG_LINES = 20_000
_LOG_EVERY_S = 0.1
# The key name of the gateway's own requests; no API key can have it.
OWN_KEY = "_gateway"
_CLOSE_TIMEOUT_S = 10.0


class UnfitItem(Exception):
    """A batch holds an item that can't be written, in whatever state the disk or server is."""


class BatchWriter(Generic[T]):
    """A queue that takes items without blocking and writes them in order, in batches.

    A batch that cannot be written stays at the front and is tried again; `error` states the reason
    meanwhile. A batch with an unfit item is halved until that item is alone, which is left out.
    `put` always takes the item: the caller decides what a full queue means.
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
        """Write the waiting items and stop; return those that could not be written in time."""
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
    not stop the service. A stream's own buffer would keep what can't be written, so it takes a
    descriptor.
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


class Countable(Protocol):
    """An attempt on its way to the ledger."""

    @property
    def row(self) -> UsageRow:
        """The finished row; read in the writer's thread, so it may count tokens."""


class Ledger(BatchWriter[Countable]):
    """A ledger that takes attempts from the event loop and writes them in the background.

    Attributes:
        taken: attempts that it took so far.
        begun: those of them that are committed or being written; they are the first ones.
        written: those of them that are surely committed.

    Raises:
        UserError, RetryableError: see `open_writer`.
    """

    def __init__(
        self,
        place: LedgerLocation,
        *,
        queue_limit: int,
        flush_interval_s: float,
        on_written: Callable[[list[UsageRow]], None],
    ) -> None:
        self._writer = open_writer(place)
        self._on_written = on_written
        self.taken = 0
        self.begun = 0
        self.written = 0
        self.on_taken: Callable[[Any], None] | None = None
        super().__init__(
            "usage ledger", self._insert, limit=queue_limit, interval_s=flush_interval_s
        )

    def put(self, item: Countable) -> None:
        """Take an attempt, from the event loop, without waiting."""
        self.taken += 1
        if self.on_taken:
            self.on_taken(item)
        super().put(item)

    def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> list[Countable]:
        """Write the waiting attempts; log those that cannot be written, row by row."""
        left = super().close(timeout_s)
        for attempt in left:
            _log(attempt)
        self._writer.close()
        return left

    def leave_out(self, item: Countable, why: UnfitItem) -> None:
        """Log an attempt that no database takes; those after it are written."""
        super().leave_out(item, why)
        with suppress(*UNFIT):
            _log(item)
        self.begun = self.written = self.written + 1

    def _insert(self, attempts: list[Countable]) -> None:
        try:
            rows = [attempt.row for attempt in attempts]
            self.begun = self.written + len(rows)
            self._writer.insert(rows)
        except UNFIT as error:
            raise UnfitItem(first_line(error)) from error
        self.written += len(rows)
        self._on_written(rows)


def _log(attempt: Countable) -> None:
    log.error("usage not written: %s", json.dumps(asdict(attempt.row)))
