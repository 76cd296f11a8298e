"""The supervisor of one container: `python -m localpods.runner DIRECTORY`.

It outlives the server. It reads from standard input what to start, starts it in a session of its
own, writes its output to a log with an instant before each line, ends it when `stop.json`, the
deadline or the memory limit say so, and leaves `exit.json`. `localpods.containers` describes
the files.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import psutil

from localpods.objects import Json, log_instant, now
from localpods.processes import (
    MARK,
    birth_of,
    held_memory,
    kill_all,
    kill_marked,
    signal_group,
)
from localpods.state import read_json, write_json

_TICK_S = 0.1
_MEMORY_TICK_S = 0.25
# Between SIGTERM and SIGKILL when the supervisor itself is told to end, or the deadline is over.
_DEFAULT_GRACE_S = 30.0
# A longer line is cut in two: a program that never ends a line must not fill the memory.
_LINE_LIMIT = 1 << 20
# How long killed processes may take to be gone, and to let go of the output.
_LEFTOVERS_LIMIT_S = 5.0
_PR_SET_CHILD_SUBREAPER = 36


class LogWriter:
    """Writes output to a file, line by line, with an instant before each."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._open_line = b""

    def feed(self, data: bytes) -> None:
        """Take in output, which may end in the middle of a line."""
        *lines, self._open_line = (self._open_line + data).split(b"\n")
        if len(self._open_line) > _LINE_LIMIT:
            lines.append(self._open_line)
            self._open_line = b""
        self._write(lines)

    def close(self) -> None:
        """Write what is left."""
        if self._open_line:
            self._write([self._open_line])
        self._file.close()

    def _write(self, lines: list[bytes]) -> None:
        stamp = log_instant().encode()
        try:
            self._file.write(b"".join(b"%s %s\n" % (stamp, line) for line in lines))
        except OSError:
            # A full disk costs lines of the log, not the supervision of the process.
            return


class Supervisor:
    """Starts a container's process, watches it and records its end."""

    def __init__(self, directory: Path, launch: Json) -> None:
        self._directory = directory
        self._launch = launch
        self._log = LogWriter(directory / "log")
        self._selector = selectors.DefaultSelector()
        self._exit_code: int | None = None
        self._kill_at: float | None = None
        self._told_to_stop = False
        self._stop_seen = 0
        self._cause: str | None = None
        self._out_of_memory = False
        self._next_memory_check = 0.0
        deadline = launch["deadline"]
        self._deadline = None if deadline is None else time.monotonic() + deadline

    def run(self) -> None:
        """Supervise until nothing of the container runs any more."""
        if self._claim():
            self._supervise()

    def _supervise(self) -> None:
        _become_subreaper()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        argv = self._launch["argv"]
        if (self._directory / "stop.json").exists():
            self._record(137, "Error", "stopped before it started")
            return
        if not argv:
            self._record(128, "StartError", "no command: neither the pod nor its image names one")
            return
        try:
            child = subprocess.Popen(
                argv,
                env=self._launch["env"],
                cwd=self._launch["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            self._record(128, "StartError", f'exec: "{argv[0]}": {why}')
            return
        self._write("started.json", pid=child.pid, birth=birth_of(child.pid), started_at=now())
        assert child.stdout is not None
        self._watch(child, child.stdout)
        self._end_leftovers(child.stdout)
        self._log.close()
        self._conclude()

    def _claim(self) -> bool:
        """Make sure that a container is started once, even if a server started two of us."""
        mine = self._directory / f".claim.{os.getpid()}"
        write_json(mine, {"pid": os.getpid(), "birth": birth_of(os.getpid())})
        try:
            # Unlike a rename, a link never replaces what is there.
            os.link(mine, self._directory / "runner.json")
        except FileExistsError:
            return False
        finally:
            mine.unlink()
        return True

    def _watch(self, child: subprocess.Popen[bytes], output: IO[bytes]) -> None:
        os.set_blocking(output.fileno(), False)
        self._selector.register(output, selectors.EVENT_READ)
        while self._exit_code is None:
            self._read_output(output, _TICK_S)
            self._reap(child)
            if self._exit_code is None:
                self._check_stop(child.pid)
                self._check_deadline(child.pid)
                self._check_memory()
                if self._kill_at is not None and time.monotonic() >= self._kill_at:
                    kill_all(psutil.Process().children(recursive=True))

    def _read_output(self, output: IO[bytes], wait: float) -> None:
        """Wait a moment for output and log it."""
        if not self._selector.get_map():
            # The process has closed its output and goes on.
            time.sleep(wait)
        elif self._selector.select(wait):
            data = os.read(output.fileno(), 1 << 16)
            if data:
                self._log.feed(data)
            else:
                self._selector.unregister(output)

    def _reap(self, child: subprocess.Popen[bytes]) -> None:
        """Take note of ended processes: the container's own and orphans that came to us."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == child.pid:
                code = os.waitstatus_to_exitcode(status)
                child.returncode = code
                # A shell's convention, which container runtimes follow.
                self._exit_code = 128 - code if code < 0 else code

    def _check_stop(self, leader: int) -> None:
        path = self._directory / "stop.json"
        try:
            seen = path.stat().st_mtime_ns
        except FileNotFoundError:
            seen = 0
        if seen != self._stop_seen:
            self._stop_seen = seen
            stop = read_json(path) or {"grace": _DEFAULT_GRACE_S, "cause": "deleted"}
            self._end(leader, stop["grace"], stop["cause"])
        if self._told_to_stop:
            self._told_to_stop = False
            self._end(leader, _DEFAULT_GRACE_S, "shutdown")

    def _check_deadline(self, leader: int) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._deadline = None
            self._end(leader, self._launch["grace"], "deadline")

    def _check_memory(self) -> None:
        limit = self._launch["memory"]
        if limit is None or time.monotonic() < self._next_memory_check:
            return
        self._next_memory_check = time.monotonic() + _MEMORY_TICK_S
        descendants = psutil.Process().children(recursive=True)
        if held_memory(descendants, limit) > limit:
            self._out_of_memory = True
            kill_all(descendants)

    def _end(self, leader: int, grace: float, cause: str) -> None:
        """Send SIGTERM and set when SIGKILL follows; a second call can only hasten it."""
        kill_at = time.monotonic() + grace
        self._kill_at = kill_at if self._kill_at is None else min(kill_at, self._kill_at)
        self._cause = self._cause or cause
        if grace > 0:
            signal_group(leader, signal.SIGTERM)

    def _end_leftovers(self, output: IO[bytes]) -> None:
        """Kill what the container's process left behind, as the end of a container does."""
        if sys.platform != "linux":
            # Only on Linux do orphans come to us.
            kill_marked(self._launch["env"][MARK])
        limit = time.monotonic() + _LEFTOVERS_LIMIT_S
        while (left := psutil.Process().children(recursive=True)) and time.monotonic() < limit:
            kill_all(left)
            psutil.wait_procs(left, timeout=_TICK_S)
        while self._selector.get_map() and self._selector.select(0.0):
            self._read_output(output, 0.0)

    def _conclude(self) -> None:
        assert self._exit_code is not None
        if self._out_of_memory:
            self._record(137, "OOMKilled", "")
        else:
            reason = "Error" if self._exit_code else "Completed"
            self._record(self._exit_code, reason, "")

    def _record(self, exit_code: int, reason: str, message: str) -> None:
        self._write(
            "exit.json",
            exit_code=exit_code,
            reason=reason,
            message=message,
            cause=self._cause,
            finished_at=now(),
        )

    def _write(self, name: str, **content: object) -> None:
        write_json(self._directory / name, content)

    def _on_sigterm(self, number: int, frame: object) -> None:
        self._told_to_stop = True


def _become_subreaper() -> None:
    """Let orphaned descendants become our children, so that none escapes (Linux: prctl(2))."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def main() -> None:
    """Supervise the container whose directory is the only argument."""
    try:
        launch = json.load(sys.stdin)
    except ValueError:
        sys.exit("the server went away before it said what to start")
    Supervisor(Path(sys.argv[1]), launch).run()


if __name__ == "__main__":
    main()
