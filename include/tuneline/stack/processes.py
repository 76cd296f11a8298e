"""Services: processes in a group of their own that outlive the command that started them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

# A process id is used again some day; the start time tells two of them apart. The
# clock of the kernel ticks a hundred times a second.
_SAME_START_SECONDS = 0.05


@dataclass(frozen=True)
class Service:
    """A process to start.

    Attributes:
        name: names its files.
        argv: the command line.
        env: its whole environment.
        cwd: its working folder.
        notes: what others need to know of it (its port, say).
        stop_seconds: how long it may take to stop when asked.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    notes: Mapping[str, Any] = field(default_factory=dict)
    stop_seconds: float = 20


class ServiceTable:
    """The services that were started, one file each."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder = folder
        self.logs = logs

    def start(self, service: Service) -> None:
        """Start a service; its output goes to its log, which starts anew."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{service.name}.log").open("wb") as log:
            process = subprocess.Popen(
                list(service.argv),
                env=dict(service.env),
                cwd=service.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        entry = {
            "pid": process.pid,
            "created": psutil.Process(process.pid).create_time(),
            "stop_seconds": service.stop_seconds,
            "notes": dict(service.notes),
        }
        path = self._file(service.name)
        staged = path.with_suffix(".new")
        staged.write_text(json.dumps(entry))
        staged.replace(path)

    def names(self) -> list[str]:
        """Names of all services that were started and not stopped."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def find(self, name: str) -> psutil.Process | None:
        """The process of a service, None when it does not run (any more)."""
        entry = self._entry(name)
        if entry is None:
            return None
        try:
            process = psutil.Process(entry["pid"])
            same = abs(process.create_time() - entry["created"]) < _SAME_START_SECONDS
            alive = process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if same and alive else None

    def started_at(self, name: str) -> datetime:
        """When a service was started; long ago for one that was not."""
        entry = self._entry(name)
        return datetime.fromtimestamp(entry["created"] if entry else 0, UTC)

    def notes(self, name: str) -> dict[str, Any]:
        """The notes of a service."""
        entry = self._entry(name)
        return dict(entry["notes"]) if entry else {}

    def stop(self, name: str) -> bool:
        """Stop a service with all that it started.

        SIGINT first (Airflow's components end cleanly on it), then SIGTERM, then SIGKILL.

        Returns:
            Whether it ran.
        """
        process, entry = self.find(name), self._entry(name)
        if process is not None and entry is not None:
            family = [process, *_children(process)]
            for how, seconds in (
                (signal.SIGINT, float(entry["stop_seconds"])),
                (signal.SIGTERM, 5.0),
                (signal.SIGKILL, 5.0),
            ):
                # The leader passes SIGINT on in its own way; what it leaves is told directly.
                targets = [process] if how == signal.SIGINT else family
                for target in targets:
                    _send(target, how)
                family = _left(family, seconds)
                if not family:
                    break
        self._file(name).unlink(missing_ok=True)
        return process is not None

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _entry(self, name: str) -> dict[str, Any] | None:
        try:
            entry: dict[str, Any] = json.loads(self._file(name).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return entry


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _send(process: psutil.Process, how: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(how)


def _left(family: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait for processes to end; those that did not."""
    deadline = time.monotonic() + seconds
    left = family
    while left and time.monotonic() < deadline:
        left = [process for process in left if _alive(process)]
        time.sleep(0.1)
    return left


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(ChildProcessError, psutil.NoSuchProcess):
        # Our own child stays a zombie until it is waited for.
        os.waitpid(process.pid, os.WNOHANG)
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
