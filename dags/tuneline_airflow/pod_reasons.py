"""Why a pod does not start, and why it ended, in a sentence that says what to do."""

from __future__ import annotations

import re
from typing import Any

# What a container waits for on its way up; none of it is trouble.
_ON_ITS_WAY = {None, "", "ContainerCreating", "PodInitializing"}
_IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError"}


def pending_reason(pod: Any) -> str | None:
    """Why a pod is not running yet; None while nothing stands in its way.

    Args:
        pod: a `V1Pod` as the API server gives it.
    """
    status = pod.status
    for condition in status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return _unscheduled(pod, condition.message or condition.reason or "no reason given")
    for container in [*(status.init_container_statuses or []), *(status.container_statuses or [])]:
        waiting = container.state.waiting if container.state else None
        if waiting is None or waiting.reason in _ON_ITS_WAY:
            continue
        said = f"{waiting.reason}: {_one_line(waiting.message)}"
        if waiting.reason in _IMAGE_REASONS:
            return (
                f"the image {container.image} can't be pulled ({said}); check its name "
                "(pods.image, pods.gpu_image, TUNELINE_IMAGE) and the cluster's pull secret"
            )
        if waiting.reason in _CONFIG_REASONS:
            return f"the container can't be made ({said}); check TUNELINE_POD_SECRETS"
        return f"the container waits ({said})"
    return None


def _unscheduled(pod: Any, message: str) -> str:
    said = _one_line(message)
    limits = _limits(pod)
    gpus = next((n for name, n in limits.items() if name.endswith("/gpu")), None)
    if gpus is not None and re.search(r"nvidia|gpu", said, re.IGNORECASE):
        return (
            f"no node has {gpus} free GPU{'' if str(gpus) == '1' else 's'} ({said}); wait for one, "
            "add a GPU node or lower pods.gpus"
        )
    if "memory" in said.lower():
        return (
            f"no node has {limits.get('memory')} of free memory ({said}); add a node or lower "
            "pods.memory"
        )
    return f"no node takes the pod ({said})"


def ending_reason(pod: Any) -> str | None:
    """`<kind>: <sentence>` for a pod that the cluster ended; None for one that ended by itself.

    Args:
        pod: a `V1Pod` as it was last seen.
    """
    status = getattr(pod, "status", None)
    reason = getattr(status, "reason", None)
    if reason == "DeadlineExceeded":
        return (
            "user_error: the pod ran past its deadline; raise pods.deadline_hours (for train: "
            "training.max_hours)"
        )
    if reason:
        said = _one_line(getattr(status, "message", None))
        return f"retryable: the cluster ended the pod ({reason}: {said})"
    return None


def out_of_memory(pod: Any) -> bool:
    """Whether a container of the pod was killed for its memory."""
    return any(ended.reason == "OOMKilled" for ended in _ended(pod))


def exit_code(pod: Any) -> int | None:
    """Exit code of the pod's first container that ended."""
    return next((int(ended.exit_code) for ended in _ended(pod)), None)


def last_words(pod: Any) -> str:
    """What the pod's first container that ended left as its termination message."""
    return next((ended.message or "" for ended in _ended(pod)), "")


def memory_limit(pod: Any) -> str:
    """The memory limit of the pod's container, as a quantity."""
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
