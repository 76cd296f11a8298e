"""The resources of pods: quantities such as `500m`, `2Gi` or `1e9`, memory limits, and GPUs.

A pod that requests GPUs waits until enough are free and sees only its own. CPUs and memory are
not reserved: on one machine the pool sizes of Airflow decide how much runs at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

from localpods.objects import Json

GPU_RESOURCE = "nvidia.com/gpu"
# Records a pod's GPUs; it is not written on a machine without any.
GPU_ANNOTATION = "localpods/gpus"
_UNCOUNTED = {"cpu", "memory", "ephemeral-storage"}
_SCALES = {
    "": Decimal(1),
    **{letter: Decimal(1000) ** power for letter, power in zip("num", (-3, -2, -1), strict=True)},
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:([eE][+-]?\d+)|([A-Za-z]*))")


class Unschedulable(Exception):
    """A pod's devices are not available now; the message is the one of a cluster's scheduler."""


def parse_quantity(value: object) -> Decimal:
    """Return a quantity in units (CPUs, bytes, devices).

    Raises:
        ValueError: if the value is not a quantity.
    """
    match = _QUANTITY.fullmatch(str(value).strip())
    if match is None or (match.group(3) or "") not in _SCALES:
        raise ValueError(f"{value!r} is not a quantity such as 500m, 2 or 4Gi")
    number, exponent, suffix = match.groups()
    return Decimal(number + (exponent or "")) * _SCALES[suffix or ""]


def count_gpus() -> int:
    """Return the number of NVIDIA GPUs of this machine, by their device files."""
    names = (path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    return sum(re.fullmatch(r"nvidia\d+", name) is not None for name in names)


def choose_gpus(pod: Json, running: Iterable[Json], total: int) -> list[str]:
    """Return the indexes of GPUs that a pod can have beside the running ones.

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
