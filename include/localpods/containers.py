"""One container: its process, from the start to the end of everything that it started.

The server is the parent of the processes. A pod therefore outlives the Airflow worker that
created it, but not the server: `localpods.guard` sees to that, and the next server reports the
pod as failed, so that Airflow tries the step again and training resumes from its checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from localpods.environment import Command
from localpods.logs import LogWriter, tail_of
from localpods.objects import now
from localpods.processes import MARK, family_of, kill_marked, memory_used, signal_group

_MEMORY_CHECK_S = 0.25
# The time that killed processes may take to release the output.
_LEFTOVERS_LIMIT_S = 5.0
# The limits of Kubernetes: of the message's file, and of the log where that stands in for it.
_MESSAGE_LIMIT = 4096
_LOG_MESSAGE_LIMIT = 2048
_LOG_MESSAGE_LINES = 80


@dataclass(frozen=True)
class Exit:
    """The end of a container.

    Attributes:
        code: the exit code.
        reason: a word, as Kubernetes writes it.
        message: the reason as a sentence, where the server knows it.
        finished_at: the time of the end.
    """

    code: int
    reason: str
    message: str
    finished_at: str


class Reaper:
    """Collects the exit codes of all children and hands them to the containers."""

    def __init__(self) -> None:
        self.waiting: dict[int, Callable[[int], None]] = {}

    def reap(self) -> None:
        """Collect what has ended. Orphans come to us too where we are process 1."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if ended := self.waiting.pop(pid, None):
                    ended(os.waitstatus_to_exitcode(status))


class ContainerRun:
    """The run of one container; a container runs once."""

    def __init__(self, folder: Path, reaper: Reaper, changed: Callable[[], None]) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder / "log"
        self.termination_message = folder / "termination-log"
        # The reason and the message why it does not start.
        self.waiting: tuple[str, str] | None = None
        # On the monotonic clock: do not try to start it sooner.
        self.next_try = 0.0
        self.started_at: str | None = None
        self.exit: Exit | None = None
        # The reason why it was stopped: deleted, deadline or shutdown.
        self.cause: str | None = None
        self._reaper = reaper
        self._changed = changed
        self._process: subprocess.Popen[bytes] | None = None
        self._code: int | None = None
        self._out_of_memory = False
        self._output_open = False
        self._kill_at: float | None = None
        self._leftovers_until = 0.0
        self._next_memory_check = 0.0

    def launch(
        self, command: Command, *, memory: int | None, deadline: float | None, grace: float
    ) -> None:
        """Start the process.

        Args:
            command: the process.
            memory: the memory limit, in bytes.
            deadline: the seconds after which the process is ended.
            grace: the seconds between SIGTERM and SIGKILL in that case.
        """
        self.waiting = None
        self.termination_message.touch(mode=0o600)
        self._memory, self._grace = memory, grace
        self._deadline = None if deadline is None else time.monotonic() + deadline
        if not command.argv:
            message = "no command: neither the pod nor its image has one"
            self._finish(Exit(128, "StartError", message, now()))
            return
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
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            message = f'exec: "{command.argv[0]}": {why}'
            self._finish(Exit(128, "StartError", message, now()))
            return
        self.started_at = now()
        self._process = process
        self._reaper.waiting[process.pid] = self._ended
        self._writer = LogWriter(self.log)
        assert process.stdout is not None
        self._output = process.stdout.fileno()
        os.set_blocking(self._output, False)
        asyncio.get_running_loop().add_reader(self._output, self._read)
        self._output_open = True

    def check(self) -> None:
        """Apply deadline, grace period and memory limit, and notice the end."""
        if self._process is None or self.exit is not None:
            return
        instant = time.monotonic()
        if self._code is not None:
            if not self._output_open or instant > self._leftovers_until:
                self._conclude()
            return
        if self._deadline is not None and instant >= self._deadline:
            self._deadline = None
            self.stop(self._grace, "deadline")
        if self._memory is not None and instant >= self._next_memory_check:
            self._next_memory_check = instant + _MEMORY_CHECK_S
            if memory_used(family_of(self._process.pid), self._memory) > self._memory:
                self._out_of_memory = True
                self._kill()
        if self._kill_at is not None and instant >= self._kill_at:
            self._kill()

    def stop(self, grace: float, cause: str) -> None:
        """Send SIGTERM, and SIGKILL after the grace period; a second call can only hasten it.

        Args:
            grace: the grace period in seconds; 0 for SIGKILL at once.
            cause: `deleted`, `deadline` or `shutdown`.
        """
        if self._process is None or self.exit is not None:
            return
        kill_at = time.monotonic() + grace
        self._kill_at = kill_at if self._kill_at is None else min(kill_at, self._kill_at)
        self.cause = self.cause or cause
        if grace > 0:
            signal_group(self._process.pid, signal.SIGTERM)
        self.check()

    @property
    def running(self) -> bool:
        """True while a process runs."""
        return self._process is not None and self.exit is None

    def message(self, policy: str) -> str:
        """Return the termination message.

        Args:
            policy: `File`, or `FallbackToLogsOnError`: the end of the log if the container
                failed without a message.
        """
        assert self.exit is not None
        if self.exit.message:
            return self.exit.message
        with self.termination_message.open("rb") as file:
            text = file.read(_MESSAGE_LIMIT).decode("utf-8", errors="replace")
        if not text and policy == "FallbackToLogsOnError" and self.exit.code != 0:
            text = tail_of(self.log, _LOG_MESSAGE_LINES)[-_LOG_MESSAGE_LIMIT:]
        return text

    def _kill(self) -> None:
        assert self._process is not None
        for process in family_of(self._process.pid):
            with contextlib.suppress(psutil.Error):
                process.kill()
        kill_marked(self.folder)

    def _read(self) -> None:
        data = os.read(self._output, 1 << 16)
        if data:
            self._writer.feed(data)
        else:
            self._close_output()
            self.check()

    def _close_output(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        asyncio.get_running_loop().remove_reader(self._output)
        self._process.stdout.close()
        self._output_open = False

    def _ended(self, code: int) -> None:
        """Note the exit of the container's first process and kill what it has left behind."""
        assert self._process is not None
        self._process.returncode = code
        # A shell's convention, which container runtimes follow.
        self._code = 128 - code if code < 0 else code
        self._leftovers_until = time.monotonic() + _LEFTOVERS_LIMIT_S
        kill_marked(self.folder)
        self.check()

    def _conclude(self) -> None:
        assert self._code is not None
        if self._output_open:
            self._close_output()
        self._writer.close()
        if self._out_of_memory:
            self._finish(Exit(137, "OOMKilled", "", now()))
        else:
            self._finish(Exit(self._code, "Error" if self._code else "Completed", "", now()))

    def _finish(self, end: Exit) -> None:
        self.exit = end
        self._changed()
