"""One container: its process, from the start to the end of everything that it started.

The server is the parent of the processes. A pod therefore outlives the Airflow worker that
created it, but not the server: the guard of `localpods.processes` sees to that. The next server
reports the pod as failed, so that Airflow tries the step again and training resumes from its
checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from localpods.environment import Command
from localpods.logs import LogWriter
from localpods.objects import now
from localpods.processes import MARK, exceeds, family_of, kill_marked

_MEMORY_CHECK_S = 0.25
# The time that killed processes may take to release the output.
_LEFTOVERS_LIMIT_S = 5.0
# Bytes; the limit of Kubernetes.
_MESSAGE_LIMIT = 4096


@dataclass(frozen=True)
class Exit:
    """The end of a container; the message is the reason as a sentence, where it is known."""

    code: int
    reason: str
    message: str = ""
    finished_at: str = field(default_factory=now)


# All children of the server that have not ended, by process id.
_children: dict[int, ContainerRun] = {}


def reap() -> None:
    """Collect the exit codes of children; orphans come to us too where we are process 1."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if run := _children.pop(ended[0], None):
                run.ended(os.waitstatus_to_exitcode(ended[1]))


class ContainerRun:
    """The run of one container; a container runs once."""

    def __init__(self, folder: Path, changed: Callable[[], None]) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.termination_message = folder / "termination-log"
        # The reason and the message why it does not start.
        self.waiting: tuple[str, str] | None = None
        # On the monotonic clock: do not try to start it sooner.
        self.next_try = 0.0
        self.started_at: str | None = None
        # What stands for its image, as a digest.
        self.image_id = ""
        self.exit: Exit | None = None
        # The reason why it was stopped: deleted, deadline or shutdown.
        self.cause: str | None = None
        self._changed = changed
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._code: int | None = None
        self._out_of_memory = False
        self._kill_at = self._leftovers_until = math.inf
        self._next_memory_check = 0.0

    def launch(self, command: Command, memory: int | None) -> None:
        """Start the process, with a memory limit in bytes."""
        self.waiting = None
        self.termination_message.touch(mode=0o600)
        self._memory = memory
        try:
            process = subprocess.Popen(
                command.argv,
                env={**command.env, MARK: str(self.folder)},
                cwd=command.cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (OSError, ValueError, IndexError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            name = next(iter(command.argv), "no command in the pod or for its image")
            self._finish(Exit(128, "StartError", f'exec: "{name}": {why}'))
            return
        self.started_at = now()
        self._process = process
        _children[process.pid] = self
        self._writer = LogWriter(self.folder / "log")
        self._output = process.stdout
        assert self._output is not None
        os.set_blocking(self._output.fileno(), False)
        asyncio.get_running_loop().add_reader(self._output, self._read)

    def check(self) -> None:
        """Apply grace period and memory limit, and notice the end."""
        if self._process is None or self.exit is not None:
            return
        instant = time.monotonic()
        if self._code is not None:
            if self._output is None or instant > self._leftovers_until:
                self._conclude()
            return
        if self._memory is not None and instant >= self._next_memory_check:
            self._next_memory_check = instant + _MEMORY_CHECK_S
            if exceeds(family_of(self._process.pid), self._memory):
                self._out_of_memory = True
                self._kill()
        if instant >= self._kill_at:
            self._kill()

    def stop(self, grace: float, cause: str) -> None:
        """Send SIGTERM, and SIGKILL after a grace period in seconds, at once if it is 0.

        A second call can only hasten it.
        """
        if self._process is None or self.exit is not None:
            return
        self._kill_at = min(time.monotonic() + grace, self._kill_at)
        self.cause = self.cause or cause
        if grace > 0 and self._code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGTERM)
        self.check()

    @property
    def running(self) -> bool:
        """True while a process runs."""
        return self._process is not None and self.exit is None

    def message(self) -> str:
        """Return the termination message."""
        assert self.exit is not None
        if self.exit.message:
            return self.exit.message
        with contextlib.suppress(FileNotFoundError):
            text = self.termination_message.read_bytes()[-_MESSAGE_LIMIT:]
            return text.decode("utf-8", errors="replace")
        return ""

    def ended(self, code: int) -> None:
        """Note the exit of the container's first process and kill what it has left behind."""
        assert self._process is not None
        self._process.returncode = code
        # A shell's convention, which container runtimes follow.
        self._code = 128 - code if code < 0 else code
        self._leftovers_until = time.monotonic() + _LEFTOVERS_LIMIT_S
        kill_marked(self.folder)
        self.check()

    def _kill(self) -> None:
        assert self._process is not None
        for process in family_of(self._process.pid):
            with contextlib.suppress(psutil.Error):
                process.kill()
        kill_marked(self.folder)

    def _read(self) -> None:
        assert self._output is not None
        if data := os.read(self._output.fileno(), 1 << 16):
            self._writer.feed(data)
        else:
            self._close_output()
            self.check()

    def _close_output(self) -> None:
        if self._output is not None:
            asyncio.get_running_loop().remove_reader(self._output)
            self._output.close()
            self._output = None

    def _conclude(self) -> None:
        self._close_output()
        self._writer.close()
        code = 137 if self._out_of_memory else self._code or 0
        failure = "OOMKilled" if self._out_of_memory else "Error"
        self._finish(Exit(code, failure if code else "Completed"))

    def _finish(self, end: Exit) -> None:
        self.exit = end
        self._changed()
