"""Memory: what is free, what a process has taken at most, and what Python gives back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CGROUP = Path("/sys/fs/cgroup")


def cgroup_free(root: Path = CGROUP) -> int | None:
    """Return the bytes that the container may still take; None without a limit.

    Reads cgroup v2 (`memory.max`, `memory.current`) or v1. Inactive cached files count as free,
    as they do for Kubernetes.
    """
    for limit_name, used_name, stat_name in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            limit = (root / limit_name).read_text().strip()
            used = int((root / used_name).read_text())
        except (OSError, ValueError):
            continue
        # Version 1 says "no limit" by a number beyond any machine.
        if limit == "max" or int(limit) >= 1 << 60:
            continue
        return max(0, int(limit) - used + _inactive_files(root / stat_name))
    return None


def _inactive_files(stat: Path) -> int:
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return 0
    counts = dict(line.split() for line in lines if line)
    return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


def free_memory() -> int:
    """Return the bytes that processes here may still take: of the machine or of the container."""
    import psutil

    free = int(psutil.virtual_memory().available)
    container = cgroup_free()
    return free if container is None else min(free, container)


_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def peak_memory(torch: Any, device: str) -> int:
    """Peak bytes of this process: reserved on a GPU, resident on a CPU."""
    if device == "cuda":
        return int(torch.cuda.max_memory_reserved())
    return resident_peak()


def restart_peak(torch: Any, device: str) -> None:
    """Give free memory back and let the peak begin again at what is in use.

    On Linux the mark goes back when 5 is written to `clear_refs` (proc(5)); elsewhere on a CPU
    the old peak stays.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def resident_peak() -> int:
    """Largest resident memory of this process so far, bytes.

    `ru_maxrss` on Linux also counts what the process was before `exec`, that is its parent;
    the kernel's own mark for this program does not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that memory ran out, on a CPU or a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign.lower() in said for sign in _SIGNS)


# New objects before the youngest are searched, and how many searches before the older ones are.
THRESHOLDS = (200_000, 20, 100)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Search for cycles rarely, for as long as this lasts."""
    before = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def no_collections() -> Iterator[None]:
    """Search for no cycles for as long as this lasts: a search stops the thread that takes times.

    In a process that has loaded torch it takes 0.1 s and more.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
