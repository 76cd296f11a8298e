"""Servers as processes: start them, wait until they are ready, drain and end them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import psutil

from tuneline.errors import TunelineError

# Time of a supervised server to drain after standard input has closed, in seconds.
GRACE_SECONDS = 30.0
# A process that was killed is gone within these seconds.
_KILL_SECONDS = 5.0
# Of the fields behind the name of the program; proc(5) calls it `starttime`, the 22nd.
_START_TICKS = 19


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """Wait until a condition is true; return the seconds that it took, infinite if it did not."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if condition():
            return time.monotonic() - began
        time.sleep(0.05)
    return float("inf")


def last_line(text: str) -> str:
    """Return the last line of a program's output that is not empty."""
    return (text.strip().splitlines() or ["it said nothing"])[-1].strip()


def run_child(command: Sequence[str], what: str, environment: Mapping[str, str]) -> str:
    """Run a program to its end and return its output.

    Raises:
        TunelineError: if it failed: what, its exit code and its last line.
    """
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    output = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise TunelineError(f"{what} (exit code {done.returncode}): {last_line(output)}")
    return output


class ServerProcess(ABC):
    """The process of a server, ready when the `with` block begins and gone when it ends.

    Attributes:
        stop_seconds: time to drain between SIGTERM and SIGKILL.
        own_group: whether it leads a process group. Signals and `kill` then reach the processes
            that it starts as well; SIGTERM of `stop` goes to the server alone.
        start_seconds: longest time until it is ready.
        load_seconds: duration of the last `start`.
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
        """Describe a server; `start` or a `with` block starts it."""
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
        """Return the error of a server that did not start; the code is None if its time ran out."""

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
        return last_line(self.read_log())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            TunelineError: if it ended or was not ready in time; see `start_error`.
        """
        began = time.monotonic()
        self.launch()
        try:
            self._wait_until_ready(began + self.start_seconds)
        except BaseException:
            self.kill()
            raise
        self.load_seconds = time.monotonic() - began

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


def _start_of(pid: int) -> str | None:
    """Return the start of a process, in ticks of one boot of the machine; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # The name, in parentheses, may hold blanks and parentheses.
    return f"{boot}:{stat.rpartition(')')[2].split()[_START_TICKS]}"


class DetachedProcess:
    """A process that outlives the one that started it, and is found again by its record.

    Raises:
        psutil.NoSuchProcess: if it has ended.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._process = psutil.Process(pid)
        self._started = _start_of(pid)

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        cwd: Path | None = None,
    ) -> Self:
        """Start a process in a new session, so that a Ctrl-C here does not reach it."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(process.pid)

    @classmethod
    def find(cls, record: Mapping[str, Any]) -> Self | None:
        """Return the process of a record; None if it has ended, also if its id was used again."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = cls(record["pid"])
            known = process._started is not None
            if known and process._started == record.get("started") and process.alive():
                return process
        return None

    @property
    def record(self) -> dict[str, Any]:
        """What finds it again."""
        return {"pid": self.pid, "started": self._started}

    def alive(self) -> bool:
        """Return True while it runs."""
        with contextlib.suppress(ChildProcessError):
            # A child stays a zombie until it is waited for.
            os.waitpid(self.pid, os.WNOHANG)
        with contextlib.suppress(psutil.Error):
            is_it = _start_of(self.pid) == self._started
            return is_it and self._process.status() != psutil.STATUS_ZOMBIE
        return False

    def family(self) -> list[DetachedProcess]:
        """Return it and the processes that it has started."""
        found = [self]
        with contextlib.suppress(psutil.Error):
            for child in self._process.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    found.append(DetachedProcess(child.pid))
        return found

    def memory_bytes(self) -> int:
        """Return the resident memory of its family, in bytes; 0 once it has ended."""
        with contextlib.suppress(psutil.Error):
            return sum(int(one._process.memory_info().rss) for one in self.family())
        return 0

    def weight_bytes(self, files: Collection[Path], size: int) -> int:
        """Return how many of the `size` bytes of a model's files its family holds in memory.

        Of mapped files the resident pages count (`smaps`), whatever else the processes hold; what
        is not mapped can only have been copied.
        """
        mapped = resident = copied = 0
        names = {str(path.resolve()) for path in files}
        for one in self.family():
            with contextlib.suppress(psutil.Error):
                for region in one._process.memory_maps():
                    copied += region.anonymous
                    if region.path in names:
                        mapped, resident = mapped + region.size, resident + region.rss
        return resident + min(copied, max(0, size - mapped))

    def signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        with contextlib.suppress(psutil.Error):
            self._process.send_signal(number)

    def stop(self, seconds: float) -> None:
        """End it by SIGTERM, or after that time by SIGKILL."""
        self.signal(signal.SIGTERM)
        if wait_for(lambda: not self.alive(), seconds) > seconds:
            self.kill()

    def kill(self) -> None:
        """End its process group at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(psutil.Error):
            self._process.wait(_KILL_SECONDS)


def supervise(command: Sequence[str]) -> int:
    """Run a server that starts processes of its own, and let none of them outlive it.

    The caller makes this process the leader of a process group. It forwards SIGTERM and SIGINT to
    the server, ends it when standard input closes, that is with the process that started this one,
    and kills what is left of the group once the server has ended. Returns the exit code as a shell
    does.
    """
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: server.send_signal(number))
    threading.Thread(target=_end_with_input, args=(server,), daemon=True).start()
    code = server.wait()
    _kill_rest_of_group()
    return code if code >= 0 else 128 - code


def _end_with_input(server: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    server.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.1)
    # Still here: the server hangs. The group includes this process.
    os.killpg(0, signal.SIGKILL)


def _kill_rest_of_group() -> None:
    """Kill the other processes of this process group, if this process leads it."""
    own = os.getpid()
    if os.getpgrp() != own:
        return
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError):
            if pid != own and os.getpgid(pid) == own:
                os.kill(pid, signal.SIGKILL)
