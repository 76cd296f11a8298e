"""The engines of a follower: processes that outlive it, so that it may be replaced."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.machine.child_environment import child_environment
from tuneline.serving.engines import probe as engine_probe
from tuneline.serving.following.release import LoadedWeights
from tuneline.serving.following.targets import EngineUnit
from tuneline.serving.processes import DetachedProcess, free_port, last_line

State = Literal["starting", "ready", "failed"]

_PROBE_SECONDS = 5.0
# Between two looks at an engine that is ready, and how long it may fail them. The gateway looks
# more often, and leaves one that hangs to its fallback meanwhile.
_LOOK_SECONDS, _HANGS_SECONDS = 30.0, 120.0
# Engines drain by themselves after SIGTERM, for at most half a minute.
_STOP_SECONDS = 45.0
_KILL_SECONDS = 5.0


@dataclass(frozen=True)
class Launch:
    """How engines are started; some have `tuneline` in an environment of their own."""

    store: str
    folder: Path
    start_seconds: float
    binaries: Mapping[str, Path]

    def command(self, unit: EngineUnit, port: int) -> list[str]:
        """Return the command line of the engine of a unit, which records what it loads."""
        place = self.binaries.get(unit.engine)
        program = [str(place / "tuneline")] if place else [sys.executable, "-m", "tuneline.cli"]
        # Its manifest was looked at here, so that no other one is served.
        texts = [f"{r.name}@{r.version}@{r.sha256}" for r in unit.releases]
        pinned = [word for text in texts for word in ("--release", text)]
        where = ["--port", str(port), "--record", str(self.log(port).with_suffix(".json"))]
        return [*program, "engine", "--store", self.store, *pinned, *where]

    def log(self, port: int) -> Path:
        """Return the log of the engine on a port."""
        return self.folder / f"engine-{port}.log"


class EngineProcess:
    """The engine of a unit as a process on a port of the loopback interface.

    It is `starting` until a token has come out, then `ready`; `failed` once it has ended, hangs or
    was not ready in time. `reason` says why it failed, or what a starting one lacks.
    """

    def __init__(
        self, unit: EngineUnit, port: int, process: DetachedProcess, log: Path, start_seconds: float
    ) -> None:
        self.unit = unit
        self.port = port
        self.state: State = "starting"
        self.reason = "it was started"
        self._process = process
        self._log = log
        self._deadline = time.monotonic() + start_seconds
        self._looked = self._proved = time.monotonic()

    @classmethod
    def start(cls, unit: EngineUnit, launch: Launch) -> EngineProcess:
        """Start the engine of a unit; `look` says when it is ready."""
        port = free_port()
        log = launch.log(port)
        # Of another engine that had the port.
        log.with_suffix(".json").unlink(missing_ok=True)
        environment = child_environment(OMP_WAIT_POLICY="PASSIVE")
        process = DetachedProcess.start(launch.command(unit, port), log, environment)
        return cls(unit, port, process, log, launch.start_seconds)

    @property
    def url(self) -> str:
        """Its address, without `/v1`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def record(self) -> dict[str, object]:
        """What another follower needs to take it over."""
        releases = [[release.name, release.version] for release in self.unit.releases]
        own = {"port": self.port, "releases": releases, "log": str(self._log)}
        return {**self._process.record, **own}

    def look(self, entries: Sequence[Mapping[str, object]]) -> None:
        """Bring its state up to date: the models of the gateway's entries must answer."""
        if self.state == "failed":
            return
        if not self._process.alive():
            self._fail(f"it ended: {self._last_words()}")
            return
        now = time.monotonic()
        if self.state == "ready" and now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        lacking = self._lacking(entries)
        if lacking is None and (fault := self._fault()):
            self._fail(fault)
        elif lacking is None:
            self.state, self.reason, self._proved = "ready", "", now
        elif self.state == "starting":
            self.reason = lacking
            if now > self._deadline:
                self._fail(f"it is not ready in time: {lacking}")
        elif now - self._proved > _HANGS_SECONDS:
            self._fail(f"no token for {now - self._proved:.0f} s: {lacking}")

    def memory_bytes(self) -> int:
        """Return the resident memory of its processes, in bytes; 0 once it has ended."""
        return self._process.memory_bytes()

    def begin_stop(self) -> None:
        """Send SIGTERM: it finishes its requests."""
        self._deadline = time.monotonic() + _STOP_SECONDS
        self._process.signal(signal.SIGTERM)

    def stopped(self) -> bool:
        """Return True once it has ended; after its time it is killed."""
        alive = self._process.alive()
        if alive and time.monotonic() > self._deadline:
            self._process.kill()
        return not alive

    def kill(self) -> None:
        """End all of its processes at once."""
        self._process.kill()

    def _fail(self, reason: str) -> None:
        self.state, self.reason = "failed", reason
        self.kill()

    def _lacking(self, entries: Sequence[Mapping[str, object]]) -> str | None:
        for entry in entries:
            adapter = entry.get("adapter")
            assert adapter is None or isinstance(adapter, int | str)
            asked = adapter if isinstance(adapter, str) else str(entry["model"])
            found = engine_probe.ready(self.url, _PROBE_SECONDS, asked, adapter)
            if not found.ok:
                return found.reason
        return None

    def _fault(self) -> str | None:
        """Return what tells the bytes that it has loaded from the released ones."""
        path = self._log.with_suffix(".json")
        try:
            loaded = LoadedWeights.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return f"{path} can't be read, so nothing says which weights it has loaded"
        return loaded.fault(self.unit.releases)

    def _last_words(self) -> str:
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return f"{last_line(text)} (log: {self._log})"


def take_over(
    path: Path,
    unit_of: Callable[[list[tuple[str, str]]], EngineUnit],
    start_seconds: float,
    say: Callable[[str], None],
) -> list[EngineProcess]:
    """Return the engines that an earlier follower recorded and that still run.

    One whose releases may not be served any more is stopped.

    Raises:
        RetryableError: if the store can't be read now.
        UserError: if the records can't be read, so that such engines would run on unseen.
    """
    found = []
    try:
        records = json.loads(path.read_text()) if path.exists() else []
        running = [(one, record) for record in records if (one := DetachedProcess.find(record))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} can't be read ({type(error).__name__}), so engines of an earlier follower may "
            "run unseen; stop them, then delete it"
        ) from None
    for process, record in running:
        try:
            unit = unit_of([(name, version) for name, version in record["releases"]])
        except RetryableError:
            raise
        except TunelineError as error:
            say(f"stopping an engine of an earlier follower: {error}")
            process.stop(_STOP_SECONDS)
            continue
        log = Path(record["log"])
        found.append(EngineProcess(unit, record["port"], process, log, start_seconds))
    return found
