"""What the machine has to give: CPUs, when limited, and GPUs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from localpods.objects import Json
from localpods.quantities import parse_quantity

GPU_RESOURCE = "nvidia.com/gpu"
# Where the scheduler notes a pod's GPUs; on a machine without any it notes nothing.
GPU_ANNOTATION = "localpods/gpus"
_SYSTEM_RESOURCES = {"cpu", "memory", "ephemeral-storage"}


@dataclass(frozen=True)
class Placement:
    """Whether a pod can run now."""

    fits: bool
    # The GPUs it gets, by index.
    gpus: tuple[str, ...] = ()
    # Why it does not fit, in the scheduler's words.
    reason: str = ""


@dataclass(frozen=True)
class Capacity:
    """The machine's resources.

    Attributes:
        cpus: CPUs that all running pods may request together; `None` for no limit.
        gpus: Number of GPUs.
    """

    cpus: Decimal | None
    gpus: int

    def place(self, pod: Json, running: Iterable[Json]) -> Placement:
        """Find room for a pod.

        Args:
            pod: The pod to place.
            running: Pods that hold resources.
        """
        lacking = []
        unknown = sorted(
            name
            for name in _names(pod) - _SYSTEM_RESOURCES - {GPU_RESOURCE}
            if requested(pod, name) > 0
        )
        lacking += unknown
        others = list(running)
        if self.cpus is not None:
            used = sum((requested(other, "cpu") for other in others), Decimal(0))
            if used + requested(pod, "cpu") > self.cpus:
                lacking.append("cpu")
        taken = {index for other in others for index in _gpus_of(other)}
        free = [str(index) for index in range(self.gpus) if str(index) not in taken]
        wanted = int(requested(pod, GPU_RESOURCE))
        if wanted > len(free):
            lacking.append(GPU_RESOURCE)
        if lacking:
            insufficient = ", ".join(f"1 Insufficient {name}" for name in lacking)
            return Placement(False, reason=f"0/1 nodes are available: {insufficient}.")
        return Placement(True, tuple(free[:wanted]))


def count_gpus() -> int:
    """Return the number of NVIDIA GPUs of this machine, by their device files."""
    names = (path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    return sum(re.fullmatch(r"nvidia\d+", name) is not None for name in names)


def requested(pod: Json, resource: str) -> Decimal:
    """Return what a pod requests of a resource; a limit without a request counts as one.

    Init containers run before the others, each alone: the pod needs the greater of the two.
    """
    together = sum(
        (_request(container, resource) for container in pod["spec"]["containers"]), Decimal(0)
    )
    init = [_request(c, resource) for c in pod["spec"].get("initContainers") or []]
    return max([together, *init])


def memory_limit(container: Json) -> int | None:
    """Return a container's memory limit in bytes."""
    limits = (container.get("resources") or {}).get("limits") or {}
    return int(parse_quantity(limits["memory"])) if "memory" in limits else None


def check_quantities(container: Json, report: Callable[[str, str], Exception]) -> None:
    """Check that all quantities of a container can be read.

    Args:
        container: The container.
        report: Makes the error to raise from the field's path below the container and the reason.
    """
    for group in ("requests", "limits"):
        for name, value in ((container.get("resources") or {}).get(group) or {}).items():
            try:
                parse_quantity(value)
            except ValueError as error:
                raise report(f"resources.{group}[{name}]", str(error)) from None


def _request(container: Json, resource: str) -> Decimal:
    resources = container.get("resources") or {}
    for group in ("requests", "limits"):
        value = (resources.get(group) or {}).get(resource)
        if value is not None:
            return parse_quantity(value)
    return Decimal(0)


def _names(pod: Json) -> set[str]:
    containers = [*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or [])]
    return {
        name
        for container in containers
        for group in ("requests", "limits")
        for name in (container.get("resources") or {}).get(group) or {}
    }


def _gpus_of(pod: Json) -> list[str]:
    text = (pod["metadata"].get("annotations") or {}).get(GPU_ANNOTATION, "")
    return text.split(",") if text else []
