"""The number of threads that a CPU engine should take."""

from __future__ import annotations

import os
from pathlib import Path

from tuneline.errors import UserError

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Cores this process may use: its affinity, cut by the container's CPU quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    try:
        quota, period = _CGROUP_QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    if quota == "max":
        return cores
    return max(1, min(cores, int(quota) // int(period)))


def configured_threads() -> int | None:
    """`$TUNELINE_THREADS`, None if it is not set.

    Raises:
        UserError: if it is no positive number.
    """
    configured = os.environ.get("TUNELINE_THREADS")
    if not configured:
        return None
    if not configured.isdigit() or int(configured) < 1:
        raise UserError(f"TUNELINE_THREADS is {configured!r}; set a positive number or unset it")
    return int(configured)


def default_threads() -> int:
    """`$TUNELINE_THREADS`, or all cores but one.

    One is left for whatever else runs: an engine whose threads outnumber the free cores
    loses a factor of ten, since its threads wait for each other at every layer.
    """
    return configured_threads() or max(1, available_cores() - 1)
