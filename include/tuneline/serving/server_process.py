"""Run a server as a child process: start it, wait until it is ready, drain it, end it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from tuneline.errors import TunelineError


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """Wait until a condition is true.

    Args:
        condition: the condition; it is tested 20 times a second.
        seconds: the longest wait, in seconds.

    Returns:
        The seconds that it took; infinite if the condition did not become true.
    """
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if condition():
            return time.monotonic() - started
        time.sleep(0.05)
    return float("inf")


class ServerProcess(ABC):
    """The process of a server, ready when the `with` block begins and gone when it ends.

    A subclass defines when it is ready and which error it raises otherwise.

    Attributes:
        stop_seconds: time to drain between SIGTERM and SIGKILL, in seconds.
        poll_seconds: pause between two looks at a starting server, in seconds.
        own_group: whether it leads a process group of its own. Signals and `kill` then reach
            the processes that it starts as well; SIGTERM of `stop` goes to the server alone.
        start_seconds: longest time until it is ready, in seconds.
        load_seconds: duration of the last `start`, in seconds.
    """

    stop_seconds: ClassVar[float]
    poll_seconds: ClassVar[float] = 0.05
    own_group: ClassVar[bool] = False

    def __init__(
        self,
        command: Sequence[str],
        *,
        start_seconds: float,
        log_file: Path | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: int | None = None,
    ) -> None:
        """Describe a server; `start` or a `with` block starts it.

        Args:
            command: the command line.
            start_seconds: longest time until it is ready, in seconds.
            log_file: file for its output; None takes a temporary one, deleted with the process.
            environment: its environment; None takes that of this process.
            stdin: its standard input, as for `subprocess.Popen`.
        """
        self.start_seconds = start_seconds
        self.load_seconds = 0.0
        self._command = list(command)
        self._log_file = log_file
        self._own_log: Path | None = None
        self._environment = environment
        self._stdin = stdin
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def waiting_for(self) -> str | None:
        """Return the condition that a starting server does not meet; None once it is ready."""

    @abstractmethod
    def start_error(self, code: int | None, lacking: str) -> TunelineError:
        """Return the error of a server that did not start.

        Args:
            code: its exit code; None if its time ran out.
            lacking: the last answer of `waiting_for`.
        """

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        return self._running().pid

    @property
    def log_file(self) -> Path:
        """The file with its output."""
        path = self._log_file or self._own_log
        if path is None:
            raise TunelineError("the server has no log yet; start it first")
        return path

    def ended(self) -> str | None:
        """Return how it ended by itself, with its last words; None while it runs."""
        code = self._running().poll()
        return None if code is None else f"ended with exit code {code}: {self.last_words()}"

    def read_log(self) -> str:
        """Return its output so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def last_words(self) -> str:
        """Return the last line of its output."""
        return (self.read_log().strip().splitlines() or ["it said nothing"])[-1]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            TunelineError: if it ended or was not ready in time; see `start_error`.
        """
        started = time.monotonic()
        self.launch()
        try:
            self._wait_until_ready(started + self.start_seconds)
        except BaseException:
            self.kill()
            raise
        self.load_seconds = time.monotonic() - started

    def launch(self) -> None:
        """Start the process without waiting, for callers that watch it start."""
        if self._process is not None:
            raise TunelineError("the server is running already")
        if self._log_file is None:
            handle, name = tempfile.mkstemp(prefix="tuneline-server-", suffix=".log")
            os.close(handle)
            self._own_log = Path(name)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=self._stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                process_group=0 if self.own_group else None,
            )

    def signal(self, number: int) -> None:
        """Send a signal, to test hung and dying servers."""
        self._send(self._running(), number)

    def drain(self) -> None:
        """Send SIGTERM to the process alone, as Kubernetes does: it finishes running requests."""
        self._running().send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Send SIGTERM and wait for it to drain; send SIGKILL if it does not end."""
        process = self._process
        if process is None:
            return
        self.drain()
        try:
            process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        if self.own_group:
            self._send(process, signal.SIGKILL)
        self._forget()

    def kill(self) -> None:
        """End it at once with SIGKILL."""
        if self._process is not None:
            self._send(self._process, signal.SIGKILL)
            self._forget()

    def _send(self, process: subprocess.Popen[bytes], number: int) -> None:
        if not self.own_group:
            process.send_signal(number)
            return
        # The group is there as long as one of its processes is.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise TunelineError("the server is not running; start it first")
        return self._process

    def _wait_until_ready(self, deadline: float) -> None:
        lacking: str | None = "it did not start"
        while lacking is not None:
            code = self._running().poll()
            if code is not None:
                raise self.start_error(code, lacking)
            lacking = self.waiting_for()
            if lacking is not None:
                if time.monotonic() > deadline:
                    raise self.start_error(None, lacking)
                time.sleep(self.poll_seconds)

    def _forget(self) -> None:
        process = self._running()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
        self._process = None
        if self._own_log is not None:
            self._own_log.unlink(missing_ok=True)
            self._own_log = None
