"""A server as a child process: started, watched until it is ready, drained, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from tuneline.errors import TunelineError


class ServerProcess(ABC):
    """One server's process, ready when the `with` block begins and gone when it ends.

    A subclass says when it is ready, and what to raise when it does not get there.

    Attributes:
        stop_seconds: How long it may drain after SIGTERM before SIGKILL comes.
        poll_seconds: Between two looks at a starting server.
        start_seconds: Within which it must be ready.
        load_seconds: How long the last `start` took.
    """

    stop_seconds: ClassVar[float]
    poll_seconds: ClassVar[float] = 0.05

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
            command: What is run.
            start_seconds: Until it must be ready.
            log_file: Where its output goes; None takes a temporary file, gone with the process.
            environment: None gives it this process's.
            stdin: As for `subprocess.Popen`.
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
        """What a starting server still lacks; None once it is ready."""

    @abstractmethod
    def start_error(self, code: int | None, lacking: str) -> TunelineError:
        """The error of a server that did not start.

        Args:
            code: Its exit code; None when its time ran out.
            lacking: What `waiting_for` said last.
        """

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        return self._running().pid

    @property
    def log_file(self) -> Path:
        """What it writes."""
        path = self._log_file or self._own_log
        if path is None:
            raise TunelineError("the server has no log yet; start it first")
        return path

    def read_log(self) -> str:
        """What it has written so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def last_words(self) -> str:
        """The last line that it has written."""
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
            TunelineError: It ended, or was not ready in time; see `start_error`.
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
        """Start the process without waiting; for those who watch it start."""
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
            )

    def signal(self, number: int) -> None:
        """Send it a signal (a test of hung or dying servers)."""
        self._running().send_signal(number)

    def stop(self) -> None:
        """SIGTERM, wait for it to drain, SIGKILL if it does not end."""
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        self._forget()

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._forget()

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
