"""The memory that training may take: configured, or a share of the free memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuneline.machine.memory import CGROUP, cgroup_free
from tuneline.machine.quantity import quantity
from tuneline.training.memory.predict import GIB

# The rest is for the caches of the kernel and for other processes.
FREE_SHARE = 0.6


def memory_limit(
    torch: Any, configured_gib: float | None, pod_memory: str, root: Path = CGROUP
) -> tuple[int, str]:
    """Return the limit of training in bytes, and its source.

    Args:
        torch: the module.
        configured_gib: `training.memory_limit_gib`; None takes a share of what is free.
        pod_memory: memory limit of the step's pod; host memory, so it applies on a CPU only.
        root: mount point of cgroups.
    """
    if configured_gib is not None:
        return int(configured_gib * GIB), "training.memory_limit_gib"
    if torch.cuda.is_available():
        bounds = [(int(torch.cuda.mem_get_info()[0]), "of the GPU's free memory")]
    else:
        import psutil

        bounds = [
            (int(psutil.virtual_memory().available), "of the machine's free memory"),
            (quantity(pod_memory), "of pods.memory"),
        ]
        container = cgroup_free(root)
        if container is not None:
            bounds.append((container, "of the container's free memory"))
    free, bound = min(bounds)
    return int(FREE_SHARE * free), f"{FREE_SHARE:.0%} {bound}"
