"""The usage ledger: one row per attempt at an upstream, in SQLite or PostgreSQL.

An attempt is billed whether or not its answer reached the client, since the machine did the
work: a request that fell back has two rows. Where the upstream reported no usage, the gateway
counts the tokens and marks the row `estimated`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Protocol

from tuneline.errors import first_line
from tuneline.serving.gateway.batch import BatchWriter, UnfitItem
from tuneline.serving.gateway.ledger_database import UNFIT, Place, UsageRow, open_writer

log = logging.getLogger("tuneline.gateway")

# The key name of the gateway's own requests; no API key can have it.
OWN_KEY = "_gateway"
_CLOSE_TIMEOUT_S = 10.0


class Countable(Protocol):
    """An attempt on its way to the ledger."""

    @property
    def row(self) -> UsageRow:
        """The finished row; read in the writer's thread, so it may count tokens."""


class Ledger(BatchWriter[Countable]):
    """A ledger that takes attempts from the event loop and writes them in the background.

    While it is `full`, new requests should wait.

    Args:
        place: the SQLite file, or the URL of a database.
        queue_limit: rows that may wait before `full`.
        flush_interval_s: time between two writes.
        on_written: function that gets each batch after it is committed.

    Attributes:
        taken: attempts that it took so far.
        begun: those of them that are committed or being written; they are the first ones.
        written: those of them that are surely committed.
        on_taken: function that sees each attempt as it is taken.

    Raises:
        UserError, RetryableError: see `open_writer`.
    """

    def __init__(
        self,
        place: Place,
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
