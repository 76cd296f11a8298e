"""CPU time and memory of a server that runs beside the benchmark."""

from __future__ import annotations

import psutil


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process and its children have used, in seconds."""
    return sum(times.user + times.system for times in (p.cpu_times() for p in _family(pid)))


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process and its children, in MiB."""
    return sum(process.memory_info().rss for process in _family(pid)) / (1 << 20)


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
