"""Finding, measuring and killing the processes of containers."""

from __future__ import annotations

import contextlib
import os
import signal
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


def signal_group(leader: int, number: signal.Signals) -> None:
    """Send a signal to the process group of a child that leads one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def family_of(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def memory_used(processes: Iterable[psutil.Process], limit: int) -> int:
    """Return the memory of processes in bytes, as exactly as comparing it with a limit needs.

    Resident sizes count shared pages once per process, and also mapped files, which a kernel
    would drop before it kills a container. They are cheap to read and come first; only above
    the limit is the proportional share of anonymous and shared memory read, on Linux.

    Args:
        processes: the processes of a container.
        limit: the limit, in bytes.
    """
    resident: dict[int, int] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            resident[process.pid] = process.memory_info().rss
    if sum(resident.values()) <= limit:
        return sum(resident.values())
    return sum(_share(pid, size) for pid, size in resident.items())


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
    kibibytes = [
        int(line.split()[1])
        for line in rollup.splitlines()
        if line.startswith(("Pss_Anon:", "Pss_Shmem:"))
    ]
    # Linux before 5.4 has no such lines.
    return 1024 * sum(kibibytes) if kibibytes else resident
