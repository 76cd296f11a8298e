"""A pod's status, derived from the state of its containers."""

from __future__ import annotations

from collections.abc import Mapping

from localpods.containers import ContainerRun
from localpods.objects import LOOPBACK, Json, now

_CONDITIONS = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
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
    """Return a pod's status.

    Args:
        pod: a pod that has been scheduled.
        runs: the runs of its containers by name; a container that has not begun may be missing.

    Returns:
        The status object; parts that have not changed keep their times.
    """
    old, spec = pod["status"], pod["spec"]
    init = [_container(c, runs.get(c["name"]), init=True) for c in spec.get("initContainers") or []]
    main = [_container(c, runs.get(c["name"]), init=False) for c in spec["containers"]]
    initialized = all(_exit_code(status) == 0 for status in init)
    if not initialized:
        for container in main:
            if "waiting" in container["state"]:
                container["state"] = {"waiting": {"reason": "PodInitializing"}}
    status: Json = {
        "phase": _phase(init, main),
        "hostIP": LOOPBACK,
        "podIP": LOOPBACK,
        "podIPs": [{"ip": LOOPBACK}],
        "startTime": old.get("startTime") or now(),
        "containerStatuses": main,
        "qosClass": "BestEffort",
    }
    if init:
        status["initContainerStatuses"] = init
    for run in runs.values():
        if run.exit and run.cause in _ENDINGS:
            status |= fail(*_ENDINGS[run.cause])
    ready = initialized and all(container["ready"] for container in main)
    truths = dict(zip(_CONDITIONS, (True, initialized, ready, ready), strict=True))
    status["conditions"] = [condition(old, kind, truth) for kind, truth in truths.items()]
    return status


def fail(reason: str, message: str) -> Json:
    """Return the part of a status that says that a pod as a whole failed."""
    return {"phase": "Failed", "reason": reason, "message": message}


def lost(pod: Json) -> Json:
    """Return the status of an unfinished pod whose server has ended, by force or not."""
    status = {**pod["status"], **fail("NodeLost", _LOST)}
    ended = {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": _LOST}
    for group in ("initContainerStatuses", "containerStatuses"):
        status[group] = [
            {
                **container,
                "ready": False,
                "state": {
                    "terminated": {
                        "startedAt": container["state"]["running"]["startedAt"],
                        "finishedAt": now(),
                        **ended,
                    }
                },
            }
            if "running" in container["state"]
            else container
            for container in status.get(group) or []
        ]
    return status


def condition(old: Json, kind: str, truth: bool, reason: str = "", message: str = "") -> Json:
    """Return a condition; it keeps the time of its last change.

    Args:
        old: the status before.
        kind: the condition's type.
        truth: True if it is met.
        reason: a word why it is not.
        message: a sentence why it is not.
    """
    text = "True" if truth else "False"
    same = (c for c in old.get("conditions") or [] if (c["type"], c["status"]) == (kind, text))
    since = next((former["lastTransitionTime"] for former in same), now())
    result = {"type": kind, "status": text, "lastTransitionTime": since}
    return {**result, "reason": reason, "message": message} if reason else result


def _container(spec: Json, run: ContainerRun | None, *, init: bool) -> Json:
    state = _state(spec, run)
    running = "running" in state
    return {
        "name": spec["name"],
        "image": spec["image"],
        "imageID": "",
        "restartCount": 0,
        "lastState": {},
        "state": state,
        "started": running,
        "ready": _exit_code({"state": state}) == 0 if init else running,
    }


def _state(spec: Json, run: ContainerRun | None) -> Json:
    if run is not None and run.exit is not None:
        message = run.message(spec.get("terminationMessagePolicy", "File"))
        terminated = {
            "exitCode": run.exit.code,
            "reason": run.exit.reason,
            "startedAt": run.started_at or run.exit.finished_at,
            "finishedAt": run.exit.finished_at,
        }
        return {"terminated": {**terminated, "message": message} if message else terminated}
    if run is not None and run.started_at is not None:
        return {"running": {"startedAt": run.started_at}}
    if run is not None and run.waiting:
        return {"waiting": dict(zip(("reason", "message"), run.waiting, strict=True))}
    return {"waiting": {"reason": "ContainerCreating"}}


def _phase(init: list[Json], main: list[Json]) -> str:
    if any(_exit_code(status) not in (0, None) for status in init):
        return "Failed"
    codes = [_exit_code(status) for status in main]
    if all(code is not None for code in codes):
        return "Succeeded" if all(code == 0 for code in codes) else "Failed"
    return "Pending" if all("waiting" in status["state"] for status in main) else "Running"


def _exit_code(status: Json) -> int | None:
    terminated = status["state"].get("terminated")
    return None if terminated is None else int(terminated["exitCode"])
