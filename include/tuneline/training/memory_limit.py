"""How much memory training may take: configured, or a share of what the machine has free."""

from __future__ import annotations

from pathlib import Path

from tuneline.training.memory import GIB

# What is left is for the caches of the kernel and for whoever else works on the machine.
FREE_SHARE = 0.6
CGROUP = Path("/sys/fs/cgroup")


def cgroup_free(root: Path = CGROUP) -> int | None:
    """Bytes that the container may still take; None without a limit.

    Reads cgroup v2 (`memory.max`, `memory.current`) or v1. Cached files that nobody reads
    give way, so they count as free, as they do for Kubernetes.
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


def free_memory(root: Path = CGROUP) -> int:
    """Bytes free for this process: of the GPU where there is one, else of machine and pod."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    import psutil

    machine = int(psutil.virtual_memory().available)
    pod = cgroup_free(root)
    return machine if pod is None else min(machine, pod)


def memory_limit(configured_gib: float | None, root: Path = CGROUP) -> tuple[int, str]:
    """The limit in bytes, and where it comes from."""
    if configured_gib is not None:
        return int(configured_gib * GIB), "training.memory_limit_gib"
    return int(FREE_SHARE * free_memory(root)), f"{FREE_SHARE:.0%} of what is free"
