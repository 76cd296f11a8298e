"""One container: the files that it and its supervisor share, and how it is started and ended.

The supervisor (`localpods.runner`) outlives the server. They meet in the container's directory:

    runner.json   the supervisor: pid, birth. Made once; a second supervisor gives way
    started.json  the container's process: pid, birth, started_at
    stop.json     written by the server: end the process, with this grace
    exit.json     exit_code, reason, message, cause, finished_at. Nothing runs any more
    log           one line per line of output, each with its instant before it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from localpods.environment import Command
from localpods.objects import Json, now, uid_of
from localpods.processes import MARK, is_alive, kill_marked, kill_tree
from localpods.state import StateDir, read_json, write_json

# A supervisor starts in about 0.1 s; on a machine under load it may take a while.
_START_LIMIT_S = 30.0
# How much longer than its grace a supervisor may take before it is killed itself.
_STOP_MARGIN_S = 5.0
_MESSAGE_LIMIT = 4096
_LOG_MESSAGE_LIMIT = 2048
_LOG_MESSAGE_LINES = 80


@dataclass
class ContainerRun:
    """What is known of a container's run."""

    directory: Path
    # Why it does not start, as (reason, message).
    waiting: tuple[str, str] | None = None
    # Do not try to start it before this instant of the monotonic clock.
    next_try: float = 0.0
    started: Json | None = None
    exit: Json | None = None
    _process: subprocess.Popen[bytes] | None = None
    _launched_at: float = field(default_factory=time.monotonic)
    _stop_at: float | None = None

    @property
    def log(self) -> Path:
        """The log file."""
        return self.directory / "log"

    @property
    def termination_message(self) -> Path:
        """The file that the container writes its last words to."""
        return self.directory / "termination-log"

    @property
    def launched(self) -> bool:
        """Whether a supervisor was started, by this server or a former one."""
        return self._process is not None or (self.directory / "runner.json").exists()

    @property
    def may_launch(self) -> bool:
        """Whether a supervisor may be on its way that has not said so yet."""
        return (self.directory / "runner.err").exists() and not self.launched

    @property
    def stopping(self) -> bool:
        """Whether the end was asked for, by this server."""
        return self._stop_at is not None

    def poll(self) -> None:
        """Read what the supervisor has written, and settle what it cannot write any more."""
        if self.exit is not None:
            return
        gone = self._supervisor_gone()
        self.started = self.started or read_json(self.directory / "started.json")
        if gone or self._process is None:
            # Only now, though the file is written before: until then a child is left to reap.
            self.exit = read_json(self.directory / "exit.json")
        if self.exit is None and gone:
            self._settle("ContainerStatusUnknown", "the supervisor of the container is gone")
        if self.exit is None and self._stop_at is not None and time.monotonic() > self._stop_at:
            self.kill()

    def launch(
        self, command: Command, *, memory: int | None, deadline: float | None, grace: float
    ) -> None:
        """Start a supervisor, which starts the process.

        Args:
            command: The process.
            memory: Memory limit in bytes.
            deadline: Seconds after which the process is ended.
            grace: Seconds between SIGTERM and SIGKILL then.
        """
        self.waiting = None
        self._launched_at = time.monotonic()
        self.termination_message.touch(mode=0o600)
        package = str(Path(__file__).resolve().parent.parent)
        with (self.directory / "runner.err").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "localpods.runner", str(self.directory)],
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                cwd=self.directory,
                env={"PYTHONPATH": package, "PATH": os.defpath, "LANG": "C.UTF-8"},
                start_new_session=True,
            )
        self._process = process
        # Over a pipe, never a file: the environment may hold secrets.
        launch = {
            "argv": command.argv,
            "env": {**command.env, MARK: str(self.directory)},
            "cwd": command.cwd,
            "memory": memory,
            "deadline": deadline,
            "grace": grace,
        }
        assert process.stdin is not None
        try:
            with process.stdin as pipe:
                pipe.write(json.dumps(launch).encode())
        except BrokenPipeError:
            # The supervisor died at once; `poll` finds that out and says so.
            return

    def emulate(self) -> None:
        """Let the container count as running without a process."""
        write_json(self.directory / "started.json", {"pid": None, "started_at": now()})
        self.poll()

    def stop(self, grace: float, cause: str) -> None:
        """Ask for the end of the process: SIGTERM, and SIGKILL after the grace.

        Args:
            grace: Seconds; 0 for SIGKILL at once.
            cause: `deleted`, `deadline` or `shutdown`.
        """
        if self.exit is not None:
            return
        if self.is_emulated():
            self.finish(0, "Completed")
            return
        write_json(self.directory / "stop.json", {"grace": grace, "cause": cause})
        limit = time.monotonic() + grace + _STOP_MARGIN_S
        self._stop_at = limit if self._stop_at is None else min(limit, self._stop_at)

    def is_emulated(self) -> bool:
        """Tell whether the container runs without a process."""
        return self.started is not None and self.started["pid"] is None

    def finish(self, exit_code: int, reason: str, message: str = "") -> None:
        """Record the end of a container that has no supervisor to do so."""
        self.exit = {
            "exit_code": exit_code,
            "reason": reason,
            "message": message,
            "cause": None,
            "finished_at": now(),
        }
        write_json(self.directory / "exit.json", self.exit)

    def kill(self) -> None:
        """Kill the process and its supervisor, at once."""
        runner = read_json(self.directory / "runner.json")
        if runner is not None:
            kill_tree(runner["pid"], runner["birth"])
        self._settle("Error", "killed after its grace period")

    def message(self, policy: str) -> str:
        """Return the termination message.

        Args:
            policy: `File`, or `FallbackToLogsOnError`: the end of the log when the container
                failed without a word.
        """
        assert self.exit is not None
        if self.exit["message"]:
            return str(self.exit["message"])
        text = _tail(self.termination_message, _MESSAGE_LIMIT)
        if not text and policy == "FallbackToLogsOnError" and self.exit["exit_code"] != 0:
            lines = _tail(self.log, 2 * _LOG_MESSAGE_LIMIT).splitlines()[-_LOG_MESSAGE_LINES:]
            text = "\n".join(line.partition(" ")[2] for line in lines)[-_LOG_MESSAGE_LIMIT:]
        return text

    def _supervisor_gone(self) -> bool:
        if self._process is not None and self._process.poll() is None:
            claimed = (self.directory / "runner.json").exists()
            return not claimed and time.monotonic() - self._launched_at > _START_LIMIT_S
        runner = read_json(self.directory / "runner.json")
        if runner is not None:
            return not is_alive(runner["pid"], runner["birth"])
        return self._process is not None

    def _settle(self, reason: str, message: str) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        # Without the supervisor nobody watches what it started: it must not go on unseen.
        kill_marked(str(self.directory))
        errors = _tail(self.directory / "runner.err", 1024).strip()
        self.finish(137, reason, f"{message}: {errors}" if errors else message)


def load_runs(state: StateDir, pod: Json) -> dict[str, ContainerRun]:
    """Return the runs of a pod's containers that were begun, by name, as the disk has them."""
    directory = state.pod_dir(uid_of(pod)) / "containers"
    runs = {path.name: ContainerRun(path) for path in directory.glob("*")}
    for run in runs.values():
        run.poll()
    return runs


def new_run(state: StateDir, pod: Json, container: str) -> ContainerRun:
    """Return the run of a container that is begun now."""
    directory = state.pod_dir(uid_of(pod)) / "containers" / container
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return ContainerRun(directory)


def _tail(path: Path, limit: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - limit))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
