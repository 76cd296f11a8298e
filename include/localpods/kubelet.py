"""The life of pods: scheduling, starting, watching and ending, the work of a cluster's kubelet."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from localpods.collection import Collection, EventLog
from localpods.containers import ContainerRun, reap
from localpods.environment import ContainerConfigError, ImageMap, ImageMissing, build_command
from localpods.objects import (
    GPU_ANNOTATION,
    LOOPBACK,
    NODE_NAME,
    Json,
    Unschedulable,
    choose_gpus,
    describe,
    is_deleting,
    is_finished,
    memory_limit,
    now,
    phase_of,
    seconds_since,
    uid_of,
)
from localpods.state import StateDir

# The form in which clusters report images that come from no registry.
_SCHEME = "localpods://sha256:"

# The reason and message of a pod that was ended as a whole, by the cause.
_ENDINGS = {
    "deadline": (
        "DeadlineExceeded",
        "Pod was active on the node longer than the specified deadline",
    ),
    "shutdown": ("Terminated", "Pod was terminated in response to imminent node shutdown."),
}
_LOST = "the server that ran the pod has ended"
log = logging.getLogger("localpods")
# The interval at which a container whose image or secret is missing is tried again.
_RETRY_S = 1.0
_TICK_S = 0.05
# Killed processes take a moment to end.
_SHUTDOWN_MARGIN_S = 5.0


def digest_of(folders: Iterable[str]) -> str:
    """Return the digest of the packages of some environments, named by their `bin` folders.

    It has the form of an `imageID`, and is empty if there are no packages.
    """
    found = [
        (str(site), site.stat().st_mtime_ns)
        for folder in folders
        for site in sorted((Path(folder).parent / "lib").glob("python3*/site-packages"))
    ]
    return _digest(tuple(found)) if found else ""


@lru_cache(maxsize=32)
def _digest(sites: tuple[tuple[str, int], ...]) -> str:
    """Hash the records of some folders; installing a package changes the folder's time."""
    digest = hashlib.sha256()
    for site, _ in sites:
        for record in sorted(Path(site).glob("*.dist-info/RECORD")):
            digest.update(record.parent.name.encode() + b"\0")
            digest.update(hashlib.sha256(record.read_bytes()).digest())
    return _SCHEME + digest.hexdigest()


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


class Kubelet:
    """Takes every pod from `Pending` to its end."""

    def __init__(
        self, state: StateDir, pods: Collection, events: EventLog, images: ImageMap, gpus: int
    ) -> None:
        self._state = state
        self._pods = pods
        self._events = events
        self._images = images
        self._gpus = gpus
        self._runs: dict[str, dict[str, ContainerRun]] = {}
        # Set when a container has ended.
        self.changed = asyncio.Event()
        # Called once for every pod that is deleted, before anything else happens to it.
        self.on_deletion: Callable[[Json], None] = lambda pod: None

    def reconcile(self) -> None:
        """Take every pod one step further."""
        reap()
        for pod in self._pods.all():
            self.sync(pod)

    def sync(self, pod: Json) -> None:
        """Take a pod one step further."""
        try:
            self._sync(pod)
        except Exception as error:
            # A full disk, too many processes, a field of the wrong type: one pod fails, and the
            # server continues with the others.
            log.exception("pod %s", describe(pod))
            with contextlib.suppress(OSError):
                self._fail(pod, "NodeFailure", f"{type(error).__name__}: see the server's log")

    def run_of(self, pod: Json, container: str) -> ContainerRun | None:
        """Return a container's run, or None if this server has not begun it."""
        return self._runs_of(pod).get(container)

    def delete(self, pod: Json, grace: float | None) -> Json:
        """Request the end of a pod, and return it; it may have been removed already.

        The time between SIGTERM and SIGKILL is in seconds; None takes that of its spec.
        """
        if not is_deleting(pod):
            self.on_deletion(pod)
        seconds = pod["spec"]["terminationGracePeriodSeconds"] if grace is None else grace
        seconds = min(seconds, pod["metadata"].get("deletionGracePeriodSeconds", seconds))
        marked = copy.deepcopy(pod)
        marked["metadata"].setdefault("deletionTimestamp", now())
        marked["metadata"]["deletionGracePeriodSeconds"] = seconds
        marked = self._pods.put(marked)
        for name, run in self._runs_of(pod).items():
            if run.running:
                self._events.emit(marked, "Killing", f"Stopping container {name}")
                run.stop(seconds, "deleted")
        self._sync(marked)
        return marked

    async def shut_down(self, grace: float) -> None:
        """End all pods, with SIGKILL after a grace period in seconds; they count as failed."""
        runs = [run for runs in self._runs.values() for run in runs.values() if run.running]
        for run in runs:
            run.stop(grace, "shutdown")
        limit = time.monotonic() + grace + _SHUTDOWN_MARGIN_S
        while any(run.running for run in runs) and time.monotonic() < limit:
            reap()
            for run in runs:
                run.check()
            await asyncio.sleep(_TICK_S)
        for pod in filter(self._runs_of, self._pods.all()):
            self._update_status(pod)

    def _sync(self, pod: Json) -> None:
        pod, runs = self._pods.current(pod), self._runs_of(pod)
        for run in runs.values():
            run.check()
        if is_deleting(pod) and not any(run.running for run in runs.values()):
            self._pods.remove(pod)
            self._runs.pop(uid_of(pod))
            log.info("pod %s: deleted", describe(pod))
        elif not is_finished(pod) and (pod["spec"].get("nodeName") or self._schedule(pod)):
            if not is_deleting(pod):
                self._run_containers(self._pods.current(pod))
            self._update_status(pod)

    def _schedule(self, pod: Json) -> bool:
        running = [other for other in self._pods.all() if not is_finished(other)]
        changed = copy.deepcopy(pod)
        status = changed["status"]
        try:
            gpus = choose_gpus(pod, running, self._gpus)
        except Unschedulable as error:
            if status.get("conditions", [{}])[0].get("message") != str(error):
                status["conditions"] = [scheduled(False, "Unschedulable", str(error))]
                self._pods.put(changed)
                self._events.emit(pod, "FailedScheduling", str(error), warning=True)
            return False
        changed["spec"]["nodeName"] = NODE_NAME
        status |= {"startTime": now(), "conditions": [scheduled(True)]}
        if self._gpus:
            annotations = changed["metadata"].get("annotations") or {}
            changed["metadata"]["annotations"] = {**annotations, GPU_ANNOTATION: ",".join(gpus)}
        self._pods.put(changed)
        self._events.emit(pod, "Scheduled", f"Successfully assigned to {NODE_NAME}")
        return True

    def _run_containers(self, pod: Json) -> None:
        """Start the containers that have not been started; end them at the pod's deadline."""
        spec, runs = pod["spec"], self._runs_of(pod)
        deadline = spec.get("activeDeadlineSeconds")
        late = deadline is not None and seconds_since(pod["status"]["startTime"]) >= deadline
        if late and not any(run.started_at for run in runs.values()):
            self._fail(pod, "DeadlineExceeded", "Pod did not start before its deadline")
        elif late:
            for run in runs.values():
                if run.cause is None:
                    run.stop(spec["terminationGracePeriodSeconds"], "deadline")
        else:
            for container in spec["containers"]:
                self._begin(pod, container)

    def _begin(self, pod: Json, container: Json) -> None:
        runs, name = self._runs_of(pod), container["name"]
        if name not in runs:
            folder = self._state.container_dir(uid_of(pod), name)
            runs[name] = ContainerRun(folder, self.changed.set)
        run = runs[name]
        if run.started_at or run.exit or time.monotonic() < run.next_try:
            return
        run.next_try = time.monotonic() + _RETRY_S
        try:
            image = self._images.find(container["image"])
            command = build_command(pod, container, image, run.termination_message, self._state)
        except (ImageMissing, ContainerConfigError) as error:
            missing = isinstance(error, ImageMissing)
            waiting = ("ErrImagePull" if missing else "CreateContainerConfigError", str(error))
            if run.waiting != waiting:
                run.waiting = waiting
                message = "Error: " + ": ".join(waiting)
                log.warning("pod %s: %s", describe(pod), message)
                self._events.emit(pod, "Failed", message, warning=True)
            return
        run.image_id = digest_of(image.path_prepend)
        run.launch(command, memory_limit(container))
        if run.started_at:
            log.info("pod %s: started container %s", describe(pod), name)
            self._events.emit(pod, "Started", f"Started container {name}")

    def _update_status(self, pod: Json) -> None:
        pod = self._pods.current(pod)
        status = pod_status(pod, self._runs_of(pod))
        if is_finished(pod) or status == pod["status"]:
            return
        changed = self._pods.put({**pod, "status": status})
        if phase_of(changed) != phase_of(pod):
            log.info("pod %s: %s", describe(pod), phase_of(changed))
        if reason := status.get("reason"):
            self._events.emit(pod, reason, status["message"], warning=True)
        if is_finished(changed):
            self._state.drop_temp(uid_of(pod))

    def _fail(self, pod: Json, reason: str, message: str) -> None:
        """Fail a pod as a whole."""
        runs = self._runs_of(pod)
        for run in runs.values():
            run.stop(0, "deleted")
        self._events.emit(pod, reason, message, warning=True)
        pod = self._pods.current(pod)
        self._pods.put({**pod, "status": {**pod_status(pod, runs), **fail(reason, message)}})

    def _runs_of(self, pod: Json) -> dict[str, ContainerRun]:
        return self._runs.setdefault(uid_of(pod), {})
