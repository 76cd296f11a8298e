"""A pod's status, worked out from what its containers are doing."""

from __future__ import annotations

from collections.abc import Mapping

from localpods.containers import ContainerRun
from localpods.objects import LOOPBACK, XCOM_SIDECAR, Json, now, uid_of

_DEADLINE_MESSAGE = "Pod was active on the node longer than the specified deadline"
_CONDITIONS = ("PodScheduled", "Initialized", "ContainersReady", "Ready")


def pod_status(pod: Json, runs: Mapping[str, ContainerRun]) -> Json:
    """Return a pod's status.

    Args:
        pod: The pod; it has been given a place to run.
        runs: Its containers' runs by name; one that was not begun may be missing.

    Returns:
        The status object; parts that have not changed keep their instants.
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
    if any(run.exit and run.exit["cause"] == "deadline" for run in runs.values()):
        status |= fail("DeadlineExceeded", _DEADLINE_MESSAGE)
    ready = initialized and all(container["ready"] for container in main)
    truths = dict(zip(_CONDITIONS, (True, initialized, ready, ready), strict=True))
    status["conditions"] = [
        condition(old, kind, truth, *_why_not(kind, status["phase"], truth))
        for kind, truth in truths.items()
    ]
    return status


def fail(reason: str, message: str) -> Json:
    """Return the part of a status that says that a pod as a whole failed."""
    return {"phase": "Failed", "reason": reason, "message": message}


def condition(old: Json, kind: str, truth: bool, reason: str = "", message: str = "") -> Json:
    """Return a condition; it keeps the instant of its last change.

    Args:
        old: The status before.
        kind: The condition's type.
        truth: Whether it holds.
        reason: One word why.
        message: A sentence why.
    """
    text = "True" if truth else "False"
    for former in old.get("conditions") or []:
        if former["type"] == kind and former["status"] == text:
            since = former["lastTransitionTime"]
            break
    else:
        since = now()
    result = {"type": kind, "status": text, "lastTransitionTime": since}
    if reason:
        result |= {"reason": reason, "message": message}
    return result


def runs_process(container: Json) -> bool:
    """Tell whether a container is a process here; Airflow's XCom sidecar only looks like one."""
    return bool(container["name"] != XCOM_SIDECAR)


def _why_not(kind: str, phase: str, truth: bool) -> tuple[str, str]:
    if truth:
        return "", ""
    if phase in {"Succeeded", "Failed"}:
        return f"Pod{phase.replace('Succeeded', 'Completed')}", ""
    if kind == "Initialized":
        return "ContainersNotInitialized", "init containers have not finished"
    return "ContainersNotReady", "containers are not running"


def _container(spec: Json, run: ContainerRun | None, *, init: bool) -> Json:
    state = _state(spec, run)
    done = _exit_of(state) == 0
    running = "running" in state
    status = {
        "name": spec["name"],
        "image": spec["image"],
        "imageID": "",
        "restartCount": 0,
        "lastState": {},
        "state": state,
        "started": running,
        "ready": done if init else running,
    }
    if run is not None and (running or "terminated" in state):
        status["containerID"] = _container_id(run)
    return status


def _container_id(run: ContainerRun) -> str:
    return f"localpods://{run.directory.parent.parent.name}/{run.directory.name}"


def _state(spec: Json, run: ContainerRun | None) -> Json:
    if run is None:
        return {"waiting": {"reason": "ContainerCreating"}}
    if run.exit is not None:
        started = run.started or {}
        message = run.message(spec.get("terminationMessagePolicy", "File"))
        terminated = {
            "exitCode": run.exit["exit_code"],
            "reason": run.exit["reason"],
            "startedAt": started.get("started_at", run.exit["finished_at"]),
            "finishedAt": run.exit["finished_at"],
            "containerID": _container_id(run),
        }
        return {"terminated": {**terminated, "message": message} if message else terminated}
    if run.started is not None:
        return {"running": {"startedAt": run.started["started_at"]}}
    reason, message = run.waiting or ("ContainerCreating", "")
    return {"waiting": {"reason": reason, "message": message} if message else {"reason": reason}}


def _phase(init: list[Json], main: list[Json]) -> str:
    if any(_exit_code(status) not in (0, None) for status in init):
        return "Failed"
    codes = [_exit_code(status) for status in main]
    if all(code is not None for code in codes):
        return "Succeeded" if all(code == 0 for code in codes) else "Failed"
    begun = any(
        code is not None or "running" in status["state"]
        for code, status in zip(codes, main, strict=True)
    )
    return "Running" if begun else "Pending"


def _exit_code(status: Json) -> int | None:
    return _exit_of(status["state"])


def _exit_of(state: Json) -> int | None:
    terminated = state.get("terminated")
    return None if terminated is None else int(terminated["exitCode"])


def describe(pod: Json) -> str:
    """Return a pod's name for the server's own log."""
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']} ({uid_of(pod)[:8]})"
