"""One container: its process, from the start to the end of everything that it started.

The server is the parent of the processes. A pod therefore outlives the Airflow worker that
created it, but not the server: the guard of `localpods.processes` sees to that. The next server
reports the pod as failed, so that Airflow tries the step again and training resumes from its
checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import math
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from localpods.environment import Command
from localpods.objects import now
from localpods.processes import MARK, exceeds, family_of, kill_marked

# Read at once; a long log must not delay the other requests.
_BLOCK = 1 << 18
# The interval at which a followed log is read.
_POLL_S = 0.05
# A longer line is cut in two: a program that never ends a line must not fill the memory.
_LINE_LIMIT = 1 << 20

_MEMORY_CHECK_S = 0.25
# The time that killed processes may take to release the output.
_LEFTOVERS_LIMIT_S = 5.0
# Bytes; the limit of Kubernetes.
_MESSAGE_LIMIT = 4096


def log_time(seconds_ago: float = 0.0) -> str:
    """Return a time in microseconds, of a fixed width so that strings compare like times."""
    time = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds_ago)
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# The time before each line and the blank after it.
_STAMP_LENGTH = len(log_time()) + 1


class LogWriter:
    """Writes output to a log."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._open_line = b""

    def feed(self, data: bytes) -> None:
        """Add output, which may end in the middle of a line."""
        *lines, self._open_line = (self._open_line + data).split(b"\n")
        if len(self._open_line) > _LINE_LIMIT:
            lines.append(self._open_line)
            self._open_line = b""
        self._write(lines)

    def close(self) -> None:
        """Write the last line if it is incomplete, and close the file."""
        if self._open_line:
            self._write([self._open_line])
        self._file.close()

    def _write(self, lines: list[bytes]) -> None:
        stamp = log_time().encode()
        try:
            self._file.write(b"".join(b"%s %s\n" % (stamp, line) for line in lines))
        except OSError:
            # A full disk costs lines of the log, not the process.
            return


async def read_log(
    path: Path,
    ended: Callable[[], bool],
    *,
    follow: bool = False,
    timestamps: bool = False,
    since: str = "",
    tail: int | None = None,
) -> AsyncIterator[bytes]:
    """Yield a log in pieces of whole lines, to its end or, to follow it, until it has `ended`.

    Args:
        since: the time of the first line, as `log_time` writes it.
        tail: the number of last lines to send; None for all.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        if tail is not None:
            last_lines = deque(file, tail)
            file.seek(file.tell() - sum(map(len, last_lines)))
        half = b""
        while True:
            # Asked before reading: what has been written until then is still read.
            last = ended() or not follow
            if data := file.read(_BLOCK):
                *lines, half = (half + data).split(b"\n")
                lines = [line for line in lines if line[:_STAMP_LENGTH] >= since.encode()]
                start = 0 if timestamps else _STAMP_LENGTH
                if piece := b"".join(line[start:] + b"\n" for line in lines):
                    yield piece
                await asyncio.sleep(0)
            elif last:
                return
            else:
                await asyncio.sleep(_POLL_S)


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
