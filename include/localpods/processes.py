"""Finding, measuring and killing the processes of containers.

Run as a module, with the pods' folder as its argument, this is the guard. The server holds the
other end of the guard's standard input. When the server ends, even by SIGKILL, the guard kills
what its containers still run: no pod is left without a server that watches its memory, its
deadline and its log.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

# Set for every process of a container, so that those without a living parent are found too.
MARK = "LOCALPODS_CONTAINER"
# Killed processes may have started others meanwhile.
_ROUNDS = 5
_PAUSE_S = 0.02


def kill_marked(folder: Path) -> None:
    """Kill all processes of the containers whose folders lie in a folder, or of that container."""
    for _ in range(_ROUNDS):
        found = _marked(str(folder))
        if not found:
            return
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(_PAUSE_S)


def family_of(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def exceeds(processes: Iterable[psutil.Process], limit: int) -> bool:
    """Return True if processes use more memory than a limit in bytes.

    Resident sizes count shared pages once per process, and also mapped files, which a kernel
    would drop before it kills a container. They are cheap to read and come first; only above
    the limit is the proportional share of anonymous and shared memory read, on Linux.
    """
    resident: dict[int, int] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            resident[process.pid] = process.memory_info().rss
    over = sum(resident.values()) > limit
    return over and sum(_share(pid, size) for pid, size in resident.items()) > limit


def _marked(folder: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        # The environment of other users' processes cannot be read.
        with contextlib.suppress(psutil.Error, OSError):
            mark = process.environ().get(MARK, "")
            if mark == folder or mark.startswith(f"{folder}/"):
                found.append(process)
    return found


def _share(pid: int, resident: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return resident
    lines = (line.split() for line in rollup.splitlines())
    kibibytes = [int(words[1]) for words in lines if words[0] in ("Pss_Anon:", "Pss_Shmem:")]
    # Linux before 5.4 has no such lines.
    return 1024 * sum(kibibytes) if kibibytes else resident


def start_guard(folder: Path) -> subprocess.Popen[bytes]:
    """Start a guard over the containers in a folder; it acts once its input is closed."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "localpods.processes", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        start_new_session=True,
    )


def _guard() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    kill_marked(Path(sys.argv[1]))


if __name__ == "__main__":
    _guard()
