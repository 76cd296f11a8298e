"""Run a piece of work so that no process that it started outlives it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

# Name of the test file that started a process, in the environment of that process.
MARK = "SUITE_TEST_FILE"
INTERRUPTED = 130
_SET_CHILD_SUBREAPER = 36  # prctl(2)
# Seconds that an interrupted piece of work has to end, and a process that it left behind.
_TO_END, _TO_LEAVE = 120, 5.0


def supervised(work: Callable[[], int]) -> int:
    """Run `work` in a fork, in a process group of its own; return its exit code.

    An orphan becomes a child of this process (PR_SET_CHILD_SUBREAPER), whatever its session or its
    environment, so none is missed. Those that are left at the end are named on stderr and ended,
    and the exit code is 1. SIGINT and SIGTERM interrupt the work.
    """
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)
    worker = os.fork()
    if not worker:
        _work(work)

    def interrupt(*_: object) -> None:
        signal.alarm(_TO_END)
        # In its first moment the worker is not the leader of a group yet.
        (os.killpg if os.getpgid(worker) == worker else os.kill)(worker, signal.SIGINT)

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(worker, signal.SIGKILL))
    pid, status = 0, 0
    while pid != worker:
        pid, status = os.wait()
    signal.alarm(0)
    code = os.waitstatus_to_exitcode(status)
    left = _left_behind()
    if left and code != INTERRUPTED:
        print("=== processes that were left running, and are ended now", file=sys.stderr)
        print("\n".join(left), file=sys.stderr, flush=True)
    for ending in (signal.SIGTERM, signal.SIGKILL):
        for process in _descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, ending)
        _left_behind()
    return code or int(bool(left))


def _work(work: Callable[[], int]) -> NoReturn:
    os.setpgid(0, 0)
    # A job in the background of a shell would ignore it, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        code = work()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _left_behind() -> list[str]:
    """Wait a few seconds for the descendants to end; return a line for each that did not."""
    deadline = time.monotonic() + _TO_LEAVE
    while (processes := _descendants()) and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        time.sleep(0.05)
    lines = []
    for process in processes:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
            environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            mark = next((e for e in environment if e.startswith(f"{MARK}=".encode())), b"=unknown")
            command = b" ".join(words).decode(errors="replace")[:200]
            lines.append(f"{mark.partition(b'=')[2].decode()}: process {process}: {command}")
    return lines


def _descendants() -> set[int]:
    """Return the processes that descend from this one and have not ended."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
            if state != "Z":
                parents[int(stat.parent.name)] = int(parent)
    found: set[int] = set()
    fresh = {os.getpid()}
    while fresh:
        fresh = {process for process, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found
