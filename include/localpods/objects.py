"""Objects as they are sent, their resources, and errors in the form of the Kubernetes API."""

from __future__ import annotations

import copy
import datetime
import re
import secrets
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

# A Kubernetes object as it is sent: JSON with camelCase keys.
Json = dict[str, Any]

NODE_NAME = "localpods"
LOOPBACK = "127.0.0.1"

# The letters that Kubernetes uses for generated names: without vowels, so they form no words.
_NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"

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
# The fields of an object's metadata that a patch may change.
_PATCHABLE = ("labels", "annotations")


def now() -> str:
    """Return the current time as Kubernetes writes it: RFC 3339, UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_since(time: str) -> float:
    """Return the seconds that have passed since an RFC 3339 time."""
    then = datetime.datetime.fromisoformat(time)
    return (datetime.datetime.now(datetime.UTC) - then).total_seconds()


def name_suffix() -> str:
    """Return five random letters for a generated name."""
    return "".join(secrets.choice(_NAME_LETTERS) for _ in range(5))


def uid_of(obj: Json) -> str:
    """Return an object's UID."""
    return str(obj["metadata"]["uid"])


def key_of(obj: Json) -> tuple[str, str]:
    """Return an object's namespace and name."""
    return str(obj["metadata"]["namespace"]), str(obj["metadata"]["name"])


def phase_of(pod: Json) -> str:
    """Return a pod's phase."""
    return str(pod["status"]["phase"])


def is_finished(pod: Json) -> bool:
    """Return True if a pod has succeeded or failed."""
    return phase_of(pod) in ("Succeeded", "Failed")


def is_deleting(obj: Json) -> bool:
    """Return True if an object's deletion has been requested."""
    return "deletionTimestamp" in obj["metadata"]


def describe(pod: Json) -> str:
    """Return a pod's name for the server's log."""
    return f"{'/'.join(key_of(pod))} ({uid_of(pod)[:8]})"


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
    return sum(p.name.removeprefix("nvidia").isdecimal() for p in Path("/dev").glob("nvidia*"))


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


class ApiError(Exception):
    """An error that the client receives as a Kubernetes `Status` object."""

    def __init__(self, code: int, reason: str, message: str, details: Json | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
            "details": details or {},
        }


def bad_request(message: str) -> ApiError:
    """Return the error for a request that cannot be understood or carried out."""
    return ApiError(400, "BadRequest", message)


def invalid(kind: str, name: str, field: str, why: str) -> ApiError:
    """Return the error for an object with an invalid field, with the fault and its remedy."""
    details = {"name": name, "kind": kind, "causes": [{"field": field, "message": why}]}
    return ApiError(422, "Invalid", f'{kind} "{name}" is invalid: {field}: {why}', details)


def patched(current: Json, patch: Json) -> Json:
    """Return an object with a merge patch (RFC 7386) applied to its labels and annotations.

    Operators mark a pod with a label; everything else about a pod is fixed once it exists.

    Raises:
        ApiError: 422 if the patch names any other field.
    """
    changes = patch.get("metadata") or {}
    if patch.keys() != {"metadata"} or changes.keys() - set(_PATCHABLE):
        message = "only labels and annotations can be changed"
        raise invalid(current["kind"], current["metadata"]["name"], "patch", message)
    changed = copy.deepcopy(current)
    for field in _PATCHABLE:
        merged = {**(changed["metadata"].get(field) or {}), **(changes.get(field) or {})}
        changed["metadata"][field] = {k: v for k, v in merged.items() if v is not None}
    return changed
