"""Services: processes in separate groups that outlive the command that started them."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tuneline.files import write_whole
from tuneline.serving.processes import DetachedProcess, wait_for


@dataclass(frozen=True)
class Service:
    """A process to start.

    Attributes:
        name: name of the service and of its files.
        argv: the command line.
        env: complete environment.
        cwd: working folder.
        notes: facts for other commands, such as its port.
        stop_seconds: time that it may take to stop, in seconds.
    """

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
        process = DetachedProcess.start(service.argv, log, service.env, service.cwd)
        entry = {
            **process.record,
            "at": time.time(),
            "stop_seconds": service.stop_seconds,
            "notes": dict(service.notes),
        }
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
        entry = self._entry(name)
        return datetime.fromtimestamp(entry["at"] if entry else 0, UTC)

    def notes(self, name: str) -> dict[str, Any]:
        """Return the notes of a service."""
        entry = self._entry(name)
        return dict(entry["notes"]) if entry else {}

    def stop(self, name: str) -> bool:
        """Stop a service and all processes that it started.

        It sends SIGINT, on which Airflow's components end cleanly, then SIGTERM, then SIGKILL.

        Returns:
            True if it ran.
        """
        process, entry = self.find(name), self._entry(name)
        if process is not None and entry is not None:
            family = process.family()
            for how, seconds in (
                (signal.SIGINT, float(entry["stop_seconds"])),
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

    def _entry(self, name: str) -> dict[str, Any] | None:
        try:
            entry: dict[str, Any] = json.loads(self._file(name).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return entry


def _ended(family: Sequence[DetachedProcess]) -> bool:
    return not any(process.alive() for process in family)
