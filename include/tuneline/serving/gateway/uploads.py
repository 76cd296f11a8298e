"""The uploader of the production log: sealed parts of the spool become Parquet in the store."""

from __future__ import annotations

import logging
import random
import threading
import time
from pathlib import Path

from tuneline.artifacts.request_log import part_key, table_of, write_part
from tuneline.errors import first_line
from tuneline.serving.gateway.metrics import Metrics
from tuneline.serving.gateway.spool import Spool
from tuneline.store import Store

log = logging.getLogger("tuneline.gateway")

UPLOADED_ROWS = "tuneline_gateway_production_log_uploaded_rows_total"
UPLOADED_PARTS = "tuneline_gateway_production_log_uploaded_parts_total"
FAILURES = "tuneline_gateway_production_log_upload_failures_total"
DROPPED = "tuneline_gateway_production_log_dropped_total"

_LOOK_S = 0.5
_LONGEST_WAIT_S = 60.0


class Uploader:
    """A thread that uploads parts; while the store fails it waits longer and longer.

    Args:
        spool: the spool.
        store: where the parts go.
        metrics: its counters.
    """

    def __init__(self, spool: Spool, store: Store, metrics: Metrics) -> None:
        self._spool = spool
        self._store = store
        self._metrics = metrics
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log uploads", daemon=True)
        self._failures = 0
        self._not_before = 0.0

    def start(self) -> None:
        """Start to upload."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Seal everything and try once to upload it; the spool keeps what is left."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if left := self._spool.size:
            log.warning("production log: %d bytes stay in the spool for the next start", left)

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            self._spool.seal()
            if time.monotonic() >= self._not_before:
                self._upload_sealed()
        self._spool.seal(everything=True)
        self._upload_sealed()

    def _upload_sealed(self) -> None:
        for path in self._spool.sealed():
            try:
                self._upload(path)
            except Exception as error:  # whatever a store raises, the part is still in the spool
                self._failed(error)
                return
            if self._failures:
                log.info("production log: the store takes parts again")
            self._failures = 0

    def _upload(self, path: Path) -> None:
        table, torn = table_of(path.read_bytes())
        if table.num_rows:
            model_folder, day = path.parts[-3:-1]
            key = part_key(model_folder, day, path.stem)
            write_part(self._store, key, table, self._spool.scratch)
            self._metrics.add(UPLOADED_ROWS, table.num_rows)
            self._metrics.add(UPLOADED_PARTS)
        if torn:
            self._metrics.add(DROPPED, torn, reason="torn")
            log.error("production log: %d torn lines of %s dropped", torn, path.name)
        self._spool.remove(path)

    def _failed(self, error: Exception) -> None:
        self._metrics.add(FAILURES)
        # Half of the wait is drawn, so that gateways don't come back all at once.
        wait = min(_LONGEST_WAIT_S, 2.0**self._failures) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._not_before = time.monotonic() + wait
        if not self._failures:
            log.error("production log: no upload, will be tried again: %s", first_line(error))
        self._failures = min(self._failures + 1, 10)
