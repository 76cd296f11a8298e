"""Sentences that explain why a pod does not start or why it ended, and what to do."""

from __future__ import annotations

import re
from typing import Any

# A container waits for these while it starts; none of them is a problem.
_STARTING = {None, "", "ContainerCreating", "PodInitializing"}
_IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
# Phases of a pod that has not ended; one that is gone was last seen in one of them.
_UNENDED = {"Pending", "Running", "Unknown"}
_CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError"}


def pending_reason(pod: Any) -> str | None:
    """Return the reason that a pod is not running yet, None if there is none.

    Args:
        pod: `V1Pod` as the API server returns it.
    """
    status = pod.status
    for condition in status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return _unscheduled(pod, condition.message or condition.reason or "no reason given")
    for container in [*(status.init_container_statuses or []), *(status.container_statuses or [])]:
        waiting = container.state.waiting if container.state else None
        if waiting is None or waiting.reason in _STARTING:
            continue
        reason = f"{waiting.reason}: {_one_line(waiting.message)}"
        if waiting.reason in _IMAGE_REASONS:
            return (
                f"the image {container.image} can't be pulled ({reason}); check its name "
                "(pods.image, pods.gpu_image or pods.engine_image of the run, TUNELINE_IMAGE, "
                "TUNELINE_GPU_IMAGE or TUNELINE_ENGINE_IMAGE of Airflow) and the pull secret"
            )
        if waiting.reason in _CONFIG_REASONS:
            return f"the container can't be made ({reason}); check TUNELINE_POD_SECRETS"
        return f"the container waits ({reason})"
    return None


def _unscheduled(pod: Any, message: str) -> str:
    reason = _one_line(message)
    limits = _limits(pod)
    gpus = next((n for name, n in limits.items() if name.endswith("/gpu")), None)
    if gpus is not None and re.search(r"nvidia|gpu", reason, re.IGNORECASE):
        plural = "" if str(gpus) == "1" else "s"
        return (
            f"no node has {gpus} free GPU{plural} ({reason}); wait for one, add a GPU node or "
            "lower pods.gpus"
        )
    if "memory" in reason.lower():
        return (
            f"no node has {limits.get('memory')} of free memory ({reason}); add a node or lower "
            "pods.memory"
        )
    return f"no node takes the pod ({reason})"


def ending_reason(pod: Any) -> str | None:
    """Return `<kind>: <sentence>` for a pod that the cluster ended, None for any other pod.

    Args:
        pod: `V1Pod` as it was last seen.
    """
    status = getattr(pod, "status", None)
    reason = getattr(status, "reason", None)
    if reason == "DeadlineExceeded":
        return (
            "user_error: the pod ran past its deadline; raise pods.deadline_hours (for train: "
            "training.max_hours)"
        )
    if reason:
        message = _one_line(getattr(status, "message", None))
        return f"retryable: the cluster ended the pod ({reason}: {message})"
    if getattr(status, "phase", None) in _UNENDED and not _ended(pod):
        return "retryable: the pod was deleted while it was at work"
    return None


def out_of_memory(pod: Any) -> bool:
    """Return True if a container of the pod was killed for its memory."""
    return any(ended.reason == "OOMKilled" for ended in _ended(pod))


def exit_code(pod: Any) -> int | None:
    """Return the exit code of the pod's first container that ended."""
    return next((int(ended.exit_code) for ended in _ended(pod)), None)


def last_words(pod: Any) -> str:
    """Return the termination message of the pod's first container that ended."""
    return next((ended.message or "" for ended in _ended(pod)), "")


def memory_limit(pod: Any) -> str:
    """Return the memory limit of the pod's container, as a quantity."""
    return str(_limits(pod).get("memory", "unknown"))


def _ended(pod: Any) -> list[Any]:
    status = getattr(pod, "status", None)
    states = [c.state for c in getattr(status, "container_statuses", None) or []]
    return [state.terminated for state in states if getattr(state, "terminated", None) is not None]


def _limits(pod: Any) -> dict[str, Any]:
    spec = getattr(pod, "spec", None)
    for container in getattr(spec, "containers", None) or []:
        found = getattr(container.resources, "limits", None) if container.resources else None
        if found:
            return dict(found)
    return {}


def _one_line(message: str | None) -> str:
    return " ".join((message or "no message").split())
