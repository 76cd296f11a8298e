"""Which GPUs each pod gets.

A pod that requests GPUs waits until enough are free and sees only its own. CPUs and memory are
not reserved: on one machine the pool sizes of Airflow decide how much runs at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from localpods.objects import Json
from localpods.quantities import parse_quantity

GPU_RESOURCE = "nvidia.com/gpu"
# Records a pod's GPUs; it is not written on a machine without any.
GPU_ANNOTATION = "localpods/gpus"
_UNCOUNTED = {"cpu", "memory", "ephemeral-storage"}


class Unschedulable(Exception):
    """A pod's devices are not available now; the message is the one of a cluster's scheduler."""


def count_gpus() -> int:
    """Return the number of NVIDIA GPUs of this machine, by their device files."""
    names = (path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    return sum(re.fullmatch(r"nvidia\d+", name) is not None for name in names)


def choose_gpus(pod: Json, running: Iterable[Json], total: int) -> list[str]:
    """Choose GPUs for a pod.

    Args:
        pod: the pod to start.
        running: the pods that hold GPUs.
        total: the number of GPUs of this machine.

    Returns:
        The indexes of the pod's GPUs.

    Raises:
        Unschedulable: if too few GPUs are free, or the pod requests another kind of device.
    """
    requested = _requested(pod)
    wanted = requested.pop(GPU_RESOURCE, 0)
    taken = {index for other in running for index in _gpus_of(other)}
    free = [str(index) for index in range(total) if str(index) not in taken]
    lacking = sorted(requested) + ([GPU_RESOURCE] if wanted > len(free) else [])
    if lacking:
        insufficient = ", ".join(f"1 Insufficient {name}" for name in lacking)
        raise Unschedulable(f"0/1 nodes are available: {insufficient}.")
    return free[:wanted]


def memory_limit(container: Json) -> int | None:
    """Return a container's memory limit in bytes."""
    limits = (container.get("resources") or {}).get("limits") or {}
    return int(parse_quantity(limits["memory"])) if "memory" in limits else None


def _requested(pod: Json) -> dict[str, int]:
    """Return the number of devices that a pod requests, by resource; a limit is a request too."""
    spec, requested = pod["spec"], dict[str, int]()
    for container in spec["containers"]:
        resources = container.get("resources") or {}
        both = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        for name in both.keys() - _UNCOUNTED:
            requested[name] = requested.get(name, 0) + int(parse_quantity(both[name]))
    return {name: amount for name, amount in requested.items() if amount}


def _gpus_of(pod: Json) -> list[str]:
    text = (pod["metadata"].get("annotations") or {}).get(GPU_ANNOTATION, "")
    return text.split(",") if text else []
