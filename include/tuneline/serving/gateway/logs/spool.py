"""The spool of the production log: lines on this machine's disk until the store has them.

Lines are appended to one file for each model and day, `<model>/<day>/<part>.jsonl`. A file that is
full or old enough is sealed: it becomes the Parquet part of that name in the store, then it is
deleted. The name is drawn once, so an upload that is repeated replaces its own part and doubles no
row.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import secrets
import threading
import time
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path

from tuneline.artifacts.request_log import part_key, table_of, write_part
from tuneline.errors import UserError, first_line
from tuneline.serving.gateway.metrics import Metrics
from tuneline.store import Store

log = logging.getLogger("tuneline.gateway")

_SUFFIX = ".jsonl"
# A part is read into memory as a whole to become Parquet.
_PART_BYTES = 32 << 20
_LOOK_S = 0.5
_LONGEST_WAIT_S = 60.0


class SpoolFull(Exception):
    """The spool has as many bytes as it may have."""


class _Part:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(8)}"
        self.path = folder / f"{name}{_SUFFIX}"
        # Readable by the gateway's own user only: even scrubbed text is a customer's.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._file = os.open(self.path, flags, 0o600)
        self.began = time.monotonic()
        self.rows = 0
        self.size = 0

    def append(self, lines: list[bytes]) -> None:
        """Append all lines or, if that fails, none."""
        data = b"".join(lines)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self.size)
            raise
        self.rows += len(lines)
        self.size += len(data)

    def close(self) -> None:
        os.close(self._file)


class Spool:
    """The spool of one gateway; what an earlier gateway left in the folder is sealed.

    Attributes:
        size: bytes of lines that the store does not have yet.

    Raises:
        UserError: if the folder can't be used, or another gateway uses it.
    """

    def __init__(
        self, folder: Path, *, limit_bytes: int, part_rows: int, part_seconds: float
    ) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._part_rows = part_rows
        self._part_seconds = part_seconds
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], _Part] = {}
        self._owner = _own(folder)
        for stale in folder.glob("*.scratch"):
            stale.unlink()
        left = sorted(folder.glob(f"*/*/*{_SUFFIX}"), key=lambda path: path.name)
        self._sealed = {path: path.stat().st_size for path in left}
        # Read without the lock: metrics must not wait for a disk.
        self.size = sum(self._sealed.values())

    @property
    def scratch(self) -> Path:
        """A file in the folder for the use of the uploader."""
        return self._folder / "part.scratch"

    def append(self, model_folder: str, day: date, lines: list[bytes]) -> None:
        """Append lines and bring them to the disk, all or none.

        Raises:
            SpoolFull: if they don't fit below the limit.
            OSError: if the disk takes no more.
        """
        place = (model_folder, day.isoformat())
        with self._lock:
            more = sum(map(len, lines))
            if self.size + more > self._limit_bytes:
                raise SpoolFull
            part = self._open.get(place)
            if part is None:
                part = self._open[place] = _Part(self._folder.joinpath(*place))
            part.append(lines)
            self.size += more
            if part.rows >= self._part_rows or part.size >= _PART_BYTES:
                self._seal(place)

    def seal(self, *, everything: bool = False) -> None:
        """Seal the parts that are old enough, or all."""
        with self._lock:
            oldest = time.monotonic() - self._part_seconds
            for place in [p for p, part in self._open.items() if everything or part.began < oldest]:
                self._seal(place)

    def sealed(self) -> list[Path]:
        """Return the files of the sealed parts, the oldest first."""
        with self._lock:
            return list(self._sealed)

    def remove(self, path: Path) -> None:
        """Delete a sealed part that the store has."""
        path.unlink(missing_ok=True)
        with self._lock:
            self.size -= self._sealed.pop(path, 0)
            # A folder that still holds a part is not empty, and stays.
            with suppress(OSError):
                path.parent.rmdir()
                path.parents[1].rmdir()

    def close(self) -> None:
        """Seal what is open and leave the folder to the next gateway."""
        self.seal(everything=True)
        os.close(self._owner)

    def _seal(self, place: tuple[str, str]) -> None:
        part = self._open.pop(place)
        part.close()
        self._sealed[part.path] = part.size


def _own(folder: Path) -> int:
    """Return the open lock of a folder; the system releases it even if the process is killed."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = os.open(folder / ".lock", os.O_WRONLY | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(
            f"{folder}: the spool of the production log can't be used: {error.strerror}; set "
            "`production_log.spool` to a folder that the gateway may write"
        ) from None
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(owner)
        raise UserError(
            f"{folder}: another gateway uses this spool; give each its own `production_log.spool`"
        ) from None
    return owner


class Uploader:
    """A thread that uploads parts; while the store fails it waits longer and longer."""

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
            self._metrics.uploaded_rows.inc(table.num_rows)
            self._metrics.uploaded_parts.inc()
        if torn:
            self._metrics.log_dropped.labels("torn").inc(torn)
            log.error("production log: %d torn lines of %s dropped", torn, path.name)
        self._spool.remove(path)

    def _failed(self, error: Exception) -> None:
        self._metrics.upload_failures.inc()
        # Half of the wait is drawn, so that gateways don't come back all at once.
        wait = min(_LONGEST_WAIT_S, 2.0**self._failures) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._not_before = time.monotonic() + wait
        if not self._failures:
            log.error("production log: no upload, will be tried again: %s", first_line(error))
        self._failures = min(self._failures + 1, 10)
