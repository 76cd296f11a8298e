"""Processes by id, safe against an id that was given to another process meanwhile."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

# The variable that tells a container's processes, also those whose parents are gone.
MARK = "LOCALPODS_CONTAINER"


def birth_of(pid: int) -> str | None:
    """Return a mark that no other process of this id ever has, or `None` when there is none.

    On Linux it is the boot's id and the start in clock ticks since boot: a start time in
    seconds would move when the clock is set. A process that has ended has no mark, even if its
    parent has not taken note of that.
    """
    try:
        if sys.platform == "linux":
            stat = Path(f"/proc/{pid}/stat").read_text()
            # The name stands in parentheses and may hold anything. Behind it the state comes
            # first, field 3 of proc(5), and the start time is field 22.
            fields = stat.rpartition(")")[2].split()
            return None if fields[0] == "Z" else f"{_boot_id()}:{fields[19]}"
        process = psutil.Process(pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return None if ended else f"{process.create_time():.2f}"
    except (OSError, psutil.Error):
        return None


def is_alive(pid: int, birth: str | None) -> bool:
    """Tell whether the process that had this id at that birth still runs."""
    return birth is not None and birth_of(pid) == birth


def kill_tree(pid: int, birth: str | None) -> None:
    """Kill a process and all its descendants, at once.

    Args:
        pid: The process's id.
        birth: Its birth mark; nothing happens when the id belongs to another process now.
    """
    if not is_alive(pid, birth):
        return
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        kill_all([*process.children(recursive=True), process])


def kill_marked(mark: str) -> None:
    """Kill the processes of a container by its mark, whoever their parents are."""
    found = []
    for process in psutil.process_iter():
        # Processes of other users do not let their environment be read.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                found.append(process)
    kill_all(found)


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill processes; psutil itself checks that their ids are still theirs."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def signal_group(leader: int, number: signal.Signals) -> None:
    """Send a signal to the process group of a child that leads one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def held_memory(processes: Iterable[psutil.Process], limit: int) -> int:
    """Return the bytes that a container's processes hold, as exactly as a limit needs it.

    Resident sizes count shared pages once per process, and mapped files too, which a kernel
    would drop before it kills a container. They are cheap, so that they come first; only above
    the limit the proportional share of anonymous and shared memory is read, where Linux has it.

    Args:
        processes: The processes.
        limit: Bytes.
    """
    resident: dict[int, int] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            resident[process.pid] = process.memory_info().rss
    if sum(resident.values()) <= limit:
        return sum(resident.values())
    return sum(_share(pid, size) for pid, size in resident.items())


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


@functools.cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
