"""A pod's status, derived from the state of its containers."""

from __future__ import annotations

from collections.abc import Mapping

from localpods.containers import ContainerRun
from localpods.objects import LOOPBACK, Json, now

# The reason and message of a pod that was ended as a whole, by the cause.
_ENDINGS = {
    "deadline": (
        "DeadlineExceeded",
        "Pod was active on the node longer than the specified deadline",
    ),
    "shutdown": ("Terminated", "Pod was terminated in response to imminent node shutdown."),
}
_LOST = "the server that ran the pod has ended"


def pod_status(pod: Json, runs: Mapping[str, ContainerRun]) -> Json:
    """Return the status of a scheduled pod from the runs of its containers, by name."""
    containers = [_container(spec, runs.get(spec["name"])) for spec in pod["spec"]["containers"]]
    status: Json = {
        **pod["status"],
        "phase": _phase(containers),
        "hostIP": LOOPBACK,
        "podIP": LOOPBACK,
        "containerStatuses": containers,
    }
    for run in runs.values():
        if run.exit and run.cause in _ENDINGS:
            status |= fail(*_ENDINGS[run.cause])
    return status


def fail(reason: str, message: str) -> Json:
    """Return the part of a status that says that a pod as a whole failed."""
    return {"phase": "Failed", "reason": reason, "message": message}


def lost(pod: Json) -> Json:
    """Return the status of an unfinished pod whose server has ended."""
    status = {**pod["status"], **fail("NodeLost", _LOST)}
    end = {"exitCode": 137, "reason": "ContainerStatusUnknown", "finishedAt": now()}
    status["containerStatuses"] = [
        {**container, "ready": False, "state": {"terminated": {**running, **end}}}
        if (running := container["state"].get("running"))
        else container
        for container in status.get("containerStatuses") or []
    ]
    return status


def scheduled(truth: bool, reason: str = "", message: str = "") -> Json:
    """Return the condition that says that a pod can run, or why it cannot yet."""
    state = {"type": "PodScheduled", "status": str(truth), "lastTransitionTime": now()}
    return {**state, "reason": reason, "message": message} if reason else state


def _container(spec: Json, run: ContainerRun | None) -> Json:
    state = _state(spec, run)
    running = "running" in state
    return {
        "name": spec["name"],
        "image": spec["image"],
        "imageID": run.image_id if run else "",
        "restartCount": 0,
        "state": state,
        "ready": running,
    }


def _state(spec: Json, run: ContainerRun | None) -> Json:
    if run is None:
        return {"waiting": {"reason": "ContainerCreating"}}
    if run.exit is not None:
        message = run.message()
        terminated = {
            "exitCode": run.exit.code,
            "reason": run.exit.reason,
            "startedAt": run.started_at or run.exit.finished_at,
            "finishedAt": run.exit.finished_at,
        }
        return {"terminated": {**terminated, "message": message} if message else terminated}
    if run.started_at is not None:
        return {"running": {"startedAt": run.started_at}}
    reason, message = run.waiting or ("ContainerCreating", "")
    return {"waiting": {"reason": reason, "message": message}}


def _phase(containers: list[Json]) -> str:
    states = [container["state"] for container in containers]
    if all("terminated" in state for state in states):
        failed = any(state["terminated"]["exitCode"] for state in states)
        return "Failed" if failed else "Succeeded"
    return "Pending" if all("waiting" in state for state in states) else "Running"
