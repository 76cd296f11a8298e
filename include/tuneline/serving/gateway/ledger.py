"""The usage ledger: one row per attempt at an upstream, in SQLite.

An attempt is billed whether or not its answer reached the client, since the machine did the
work: a request that fell back has two rows. Where the upstream reported no usage, the gateway
counts the tokens and marks the row `estimated`.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Protocol

from tuneline.errors import UserError
from tuneline.serving.gateway.batch import BatchWriter

log = logging.getLogger("tuneline.gateway")

SCHEMA_VERSION = 1
# The key name of the gateway's own requests; no API key can have it.
OWN_KEY = "_gateway"
_CLOSE_TIMEOUT_S = 10.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    request_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,         -- from 1, in the order of the chain
    time REAL NOT NULL,               -- Unix time at which the attempt began
    kind TEXT NOT NULL,               -- request, ping or warmup
    key TEXT NOT NULL,                -- name of the API key
    model TEXT NOT NULL,              -- the model id that the client asked for
    upstream TEXT NOT NULL,
    model_served TEXT NOT NULL,       -- the upstream's own model id
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,   -- of the prompt tokens, those the upstream had cached
    completion_tokens INTEGER NOT NULL,
    estimated INTEGER NOT NULL,       -- 1: counted by the gateway, not reported
    cost REAL NOT NULL,
    currency TEXT NOT NULL,
    latency_ms REAL NOT NULL,
    ttft_ms REAL,                     -- NULL when nothing was streamed
    mean_logprob REAL,                -- NULL when log-probabilities were not asked for
    status TEXT NOT NULL,             -- how the attempt ended
    served INTEGER NOT NULL,          -- 1: this answer went to the client
    fallback_reason TEXT,             -- why the attempt before was left; NULL on the first
    PRIMARY KEY (request_id, attempt)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS usage_by_time ON usage (time);
"""


@dataclass(frozen=True)
class UsageRow:
    """One attempt; the schema explains the columns."""

    request_id: str
    attempt: int
    time: float
    kind: str
    key: str
    model: str
    upstream: str
    model_served: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    estimated: bool
    cost: float
    currency: str
    latency_ms: float
    ttft_ms: float | None
    mean_logprob: float | None
    status: str
    served: bool
    fallback_reason: str | None


class Countable(Protocol):
    """An attempt on its way to the ledger."""

    @property
    def row(self) -> UsageRow:
        """The finished row; read in the writer's thread, so it may count tokens."""


_COLUMNS = tuple(field.name for field in fields(UsageRow))
# In C: a batch must not keep the interpreter from the event loop.
_values = attrgetter(*_COLUMNS)
# OR IGNORE: a batch whose commit was in doubt is written again without billing twice.
_INSERT = f"INSERT OR IGNORE INTO usage ({', '.join(_COLUMNS)}) VALUES "  # noqa: S608 (our own column names)
_PLACES = f"({', '.join('?' * len(_COLUMNS))})"
# SQLite gives the interpreter back for every statement, and under load it takes a switch to get
# it again: with one row a statement the writer falls behind the event loop at 2,000 rows a second.
_ROWS_A_STATEMENT = 100


def open_ledger(path: Path) -> sqlite3.Connection:
    """Open a ledger for writing; make it if it is missing.

    Raises:
        UserError: if the file is not a ledger of this version, or cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=10.0, check_same_thread=False)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version != SCHEMA_VERSION and (version or tables):
            connection.close()
            raise UserError(
                f"{path}: not a usage ledger of version {SCHEMA_VERSION}; name another file"
            )
        connection.execute("PRAGMA journal_mode=WAL")
        # One fsync per batch, not per request, so full durability costs nothing here.
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"{path}: the usage ledger cannot be opened: {error}") from None
    return connection


class Ledger(BatchWriter[Countable]):
    """A ledger that takes attempts from the event loop and writes them in the background.

    While it is `full`, new requests should wait.

    Args:
        path: the SQLite file.
        queue_limit: rows that may wait before `full`.
        flush_interval_s: time between two writes.
        on_written: function that gets each batch after it is committed.

    Raises:
        UserError: see `open_ledger`.
    """

    def __init__(
        self,
        path: Path,
        *,
        queue_limit: int,
        flush_interval_s: float,
        on_written: Callable[[list[UsageRow]], None],
    ) -> None:
        self._connection = open_ledger(path)
        self._on_written = on_written
        super().__init__(
            "usage ledger", self._insert, limit=queue_limit, interval_s=flush_interval_s
        )

    def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> list[Countable]:
        """Write the waiting attempts; log those that cannot be written, row by row."""
        left = super().close(timeout_s)
        for attempt in left:
            log.error("usage not written: %s", json.dumps(asdict(attempt.row)))
        self._connection.close()
        return left

    def _insert(self, attempts: list[Countable]) -> None:
        rows = [attempt.row for attempt in attempts]
        with self._connection:
            for first in range(0, len(rows), _ROWS_A_STATEMENT):
                some = rows[first : first + _ROWS_A_STATEMENT]
                statement = _INSERT + ", ".join([_PLACES] * len(some))
                self._connection.execute(statement, [*chain.from_iterable(map(_values, some))])
        self._on_written(rows)
