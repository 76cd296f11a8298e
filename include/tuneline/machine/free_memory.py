"""The memory that this machine or container still has."""

from __future__ import annotations

from pathlib import Path

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
