"""Services: processes that outlive the command that started them, their ports and locks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tuneline.errors import UserError
from tuneline.files import write_whole
from tuneline.serving.processes import DetachedProcess, wait_for
from tuneline.stack.layout import LOOPBACK


@dataclass(frozen=True)
class Service:
    """A process to start; its notes are facts for other commands, such as its port."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    notes: Mapping[str, Any] = field(default_factory=dict)
    stop_seconds: float = 20


class ServiceTable:
    """The services that were started, with one file for each."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder = folder
        self.logs = logs

    def start(self, service: Service) -> None:
        """Start a service and write its output to a new log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{service.name}.log"
        facts = {"stop_seconds": service.stop_seconds, "notes": dict(service.notes)}
        # A process that nobody has a record of could not be stopped.
        with _uninterrupted():
            process = DetachedProcess.start(service.argv, log, service.env, service.cwd)
            entry = {**process.record, "at": time.time(), **facts}
            write_whole(self._file(service.name), json.dumps(entry).encode())

    def names(self) -> list[str]:
        """Return the names of all services that were started and not stopped."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def find(self, name: str) -> DetachedProcess | None:
        """Return the process of a service, None if it does not run."""
        entry = self._entry(name)
        return DetachedProcess.find(entry) if entry else None

    def started_at(self, name: str) -> datetime:
        """Return the time at which a service was started, 1970 for one that was not."""
        return datetime.fromtimestamp(self._entry(name).get("at", 0), UTC)

    def notes(self, name: str) -> dict[str, Any]:
        """Return the notes of a service."""
        return dict(self._entry(name).get("notes", {}))

    def stop(self, name: str) -> bool:
        """Stop a service and all processes that it started; return True if it ran.

        It sends SIGINT, on which Airflow's components end cleanly, then SIGTERM, then SIGKILL.
        """
        process, entry = self.find(name), self._entry(name)
        if process is not None:
            family = process.family()
            for how, seconds in (
                (signal.SIGINT, float(entry.get("stop_seconds", 0))),
                (signal.SIGTERM, 5.0),
                (signal.SIGKILL, 5.0),
            ):
                # The leader passes SIGINT on in its own way; later signals go to each process.
                for target in [process] if how == signal.SIGINT else family:
                    target.signal(how)
                wait_for(partial(_ended, family), seconds)
                family = [one for one in family if one.alive()]
                if not family:
                    break
        self._file(name).unlink(missing_ok=True)
        return process is not None

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _entry(self, name: str) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return dict(json.loads(self._file(name).read_text()))
        return {}


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block has ended."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _ended(family: Sequence[DetachedProcess]) -> bool:
    return not any(process.alive() for process in family)


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock for the length of a block; `what` is the activity, for the message.

    Raises:
        UserError: if another process holds it; the message names the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise UserError(
                f"{what} is running already (process {holder}); wait for it to end or stop it"
            ) from None
        handle.seek(0)
        handle.truncate()
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def require_free(port: int, what: str, setting: str) -> None:
    """Raise a UserError if another program has the port, which it names where it can."""
    with socket.socket() as probe:
        # Servers set this option, so that a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            raise UserError(
                f"port {port} for {what} is taken by {_holder(port)}; stop it, or choose another "
                f"port with {setting}={port + 1}"
            ) from None


def _holder(port: int) -> str:
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "another program"
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr
        # An address is a pair of host and port.
        if listens and tuple(connection.laddr)[1] == port and connection.pid:
            try:
                process = psutil.Process(connection.pid)
                return f"{process.name()} (process {process.pid})"
            except psutil.Error:
                break
    return "another program"
