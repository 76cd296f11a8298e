"""The life of pods: scheduling, starting, watching, ending. What a cluster's kubelet does."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable

from localpods.capacity import GPU_ANNOTATION, Capacity, memory_limit
from localpods.collection import Collection
from localpods.containers import ContainerRun, load_runs, new_run
from localpods.environment import ContainerConfigError, PodPaths, build_command
from localpods.events import EventLog
from localpods.images import ImageMap, ImageMissing
from localpods.objects import (
    NODE_NAME,
    Json,
    is_deleting,
    is_finished,
    now,
    phase_of,
    seconds_since,
    uid_of,
)
from localpods.pod_status import condition, describe, fail, pod_status, runs_process
from localpods.state import StateDir

log = logging.getLogger("localpods")

# How often a container whose image or secret is missing is tried again.
_RETRY_S = 1.0


class Kubelet:
    """Brings every pod from `Pending` to its end."""

    def __init__(
        self,
        state: StateDir,
        pods: Collection,
        events: EventLog,
        images: ImageMap,
        capacity: Capacity,
    ) -> None:
        self._state = state
        self._pods = pods
        self._events = events
        self._images = images
        self._capacity = capacity
        self._runs: dict[str, dict[str, ContainerRun]] = {}
        # Called before a pod is taken out; the job controller counts it then.
        self.on_removal: Callable[[Json], None] = lambda pod: None

    def reconcile(self) -> None:
        """Bring every pod one step further."""
        for pod in self._pods.all():
            self.sync(pod)

    def sync(self, pod: Json) -> None:
        """Bring a pod one step further."""
        try:
            self._sync(pod)
        except Exception as error:
            # A full disk, too many processes, a field of an odd shape: one pod fails, and the
            # server goes on with the others.
            log.exception("pod %s", describe(pod))
            with contextlib.suppress(OSError):
                self._fail(pod, "NodeFailure", f"{type(error).__name__}: see the server's log")

    def is_starting(self, pod: Json) -> bool:
        """Tell whether nothing stands in the way of a pod's containers."""
        if not pod["spec"].get("nodeName") or pod["spec"].get("initContainers"):
            return False
        return not any(run.waiting for run in self._runs_of(pod).values())

    def run_of(self, pod: Json, container: str) -> ContainerRun | None:
        """Return a container's run, or `None` when it was not begun."""
        return self._runs_of(pod).get(container)

    def delete(self, pod: Json, grace: float | None) -> Json:
        """Ask for the end of a pod.

        Args:
            pod: The pod.
            grace: Seconds between SIGTERM and SIGKILL; `None` for what the pod's spec says.

        Returns:
            The pod as it is now: marked, or as it was before it was taken out.
        """
        seconds = pod["spec"]["terminationGracePeriodSeconds"] if grace is None else grace
        former = pod["metadata"].get("deletionGracePeriodSeconds", seconds)
        marked = copy.deepcopy(pod)
        marked["metadata"].setdefault("deletionTimestamp", now())
        marked["metadata"]["deletionGracePeriodSeconds"] = min(seconds, former)
        marked = self._pods.put(marked)
        for name, run in self._runs_of(marked).items():
            if run.exit is None and not is_finished(marked):
                self._events.emit(marked, "Killing", f"Stopping container {name}")
                run.stop(min(seconds, former), "deleted")
        self._sync(marked)
        return marked

    def end_sidecar(self, pod: Json, container: str) -> None:
        """End a container that only looks like one."""
        run = self.run_of(pod, container)
        if run is not None and run.is_emulated():
            run.finish(0, "Completed")
            self._sync(self._pods.get(pod["metadata"]["namespace"], pod["metadata"]["name"]))

    def _sync(self, pod: Json) -> None:
        if is_deleting(pod):
            self._terminate(pod)
        elif not is_finished(pod) and (pod["spec"].get("nodeName") or self._schedule(pod)):
            # Scheduling has put a changed copy.
            pod = self._pods.get(pod["metadata"]["namespace"], pod["metadata"]["name"])
            self._run_containers(pod)
            self._update_status(pod)

    def _schedule(self, pod: Json) -> bool:
        running = [other for other in self._pods.all() if self._holds_resources(other)]
        placement = self._capacity.place(pod, running)
        changed = copy.deepcopy(pod)
        status = changed["status"]
        if not placement.fits:
            unschedulable = condition(
                status, "PodScheduled", False, "Unschedulable", placement.reason
            )
            if status.get("conditions") != [unschedulable]:
                status["conditions"] = [unschedulable]
                self._pods.put(changed)
                self._events.emit(pod, "FailedScheduling", placement.reason, warning=True)
            return False
        changed["spec"]["nodeName"] = NODE_NAME
        status["startTime"] = now()
        status["conditions"] = [condition(status, "PodScheduled", True)]
        if self._capacity.gpus:
            annotations = changed["metadata"].get("annotations") or {}
            annotations[GPU_ANNOTATION] = ",".join(placement.gpus)
            changed["metadata"]["annotations"] = annotations
        self._pods.put(changed)
        self._events.emit(pod, "Scheduled", f"Successfully assigned to {NODE_NAME}")
        return True

    def _holds_resources(self, pod: Json) -> bool:
        """Tell whether a pod has processes; one that waits for its XCom to be read has none."""
        if is_finished(pod) or not pod["spec"].get("nodeName"):
            return False
        runs = self._runs_of(pod)
        return any(
            runs_process(container)
            and (container["name"] not in runs or runs[container["name"]].exit is None)
            for container in pod["spec"]["containers"]
        )

    def _run_containers(self, pod: Json) -> None:
        runs = self._runs_of(pod)
        for run in runs.values():
            run.poll()
        for container in pod["spec"].get("initContainers") or []:
            self._begin(pod, container)
            run = runs[container["name"]]
            if run.exit is None or run.exit["exit_code"] != 0:
                return
        processes = [c for c in pod["spec"]["containers"] if runs_process(c)]
        for container in processes:
            self._begin(pod, container)
        begun = all(runs[c["name"]].started or runs[c["name"]].exit for c in processes)
        for container in pod["spec"]["containers"]:
            if not runs_process(container) and begun:
                self._begin(pod, container)
        if any(run.exit and run.exit["cause"] == "deadline" for run in runs.values()):
            for run in runs.values():
                run.stop(0, "deadline")

    def _begin(self, pod: Json, container: Json) -> None:
        """Start a container that has not been started."""
        runs = self._runs_of(pod)
        run = runs.get(container["name"])
        if run is None:
            run = runs[container["name"]] = new_run(self._state, pod, container["name"])
        if run.launched or run.started or run.exit or time.monotonic() < run.next_try:
            return
        if not runs_process(container):
            run.emulate()
            return
        run.next_try = time.monotonic() + _RETRY_S
        deadline = _seconds_left(pod)
        if deadline is not None and deadline <= 0:
            self._fail(pod, "DeadlineExceeded", "Pod was active longer than the deadline")
            return
        paths = PodPaths.of(self._state, uid_of(pod))
        paths.create()
        try:
            command = build_command(
                pod,
                container,
                image=self._images.find(container["image"]),
                defaults=self._images.env,
                paths=paths,
                termination_message=run.termination_message,
                state=self._state,
            )
        except ImageMissing as error:
            self._hold(pod, run, "ErrImagePull", str(error))
            return
        except ContainerConfigError as error:
            self._hold(pod, run, "CreateContainerConfigError", str(error))
            return
        run.launch(
            command,
            memory=memory_limit(container),
            deadline=deadline,
            grace=pod["spec"]["terminationGracePeriodSeconds"],
        )
        self._events.emit(pod, "Created", f"Created container: {container['name']}")

    def _hold(self, pod: Json, run: ContainerRun, reason: str, message: str) -> None:
        if run.waiting != (reason, message):
            run.waiting = (reason, message)
            log.warning("pod %s: %s: %s", describe(pod), reason, message)
            self._events.emit(pod, "Failed", f"Error: {reason}: {message}", warning=True)

    def _update_status(self, pod: Json) -> None:
        pod = self._pods.get(pod["metadata"]["namespace"], pod["metadata"]["name"])
        if is_finished(pod):
            return
        status = pod_status(pod, self._runs_of(pod))
        if status == pod["status"]:
            return
        changed = self._pods.put({**pod, "status": status})
        for name in _newly_started(pod["status"], status):
            log.info("pod %s: started container %s", describe(pod), name)
            self._events.emit(pod, "Started", f"Started container {name}")
        if phase_of(changed) != phase_of(pod):
            log.info("pod %s: %s", describe(pod), phase_of(changed))
        if is_finished(changed):
            self._conclude(changed)

    def _conclude(self, pod: Json) -> None:
        for container in pod["status"]["containerStatuses"]:
            ended = container["state"].get("terminated") or {}
            if ended.get("reason") not in (None, "Completed"):
                text = f"Container {container['name']}: {ended['reason']}, exit {ended['exitCode']}"
                self._events.emit(pod, ended["reason"], text, warning=True)
        if pod["status"].get("reason") == "DeadlineExceeded":
            self._events.emit(pod, "DeadlineExceeded", pod["status"]["message"], warning=True)
        self._state.drop_temp(uid_of(pod))

    def _fail(self, pod: Json, reason: str, message: str) -> None:
        """Fail a pod as a whole."""
        runs = self._runs_of(pod)
        for run in runs.values():
            if run.exit is None and (run.launched or run.started):
                run.kill()
        status = {**pod_status(pod, runs), **fail(reason, message)}
        self._events.emit(pod, reason, message, warning=True)
        self._pods.put({**pod, "status": status})

    def _terminate(self, pod: Json) -> None:
        grace = pod["metadata"]["deletionGracePeriodSeconds"]
        runs = self._runs_of(pod)
        for run in runs.values():
            run.poll()
            if not run.stopping:
                # A former server marked the pod and went away.
                run.stop(grace, "deleted")
        if all(run.exit or not run.launched for run in runs.values()):
            self.on_removal(pod)
            self._pods.remove(pod)
            self._runs.pop(uid_of(pod), None)
            log.info("pod %s: deleted", describe(pod))
        elif pod["spec"].get("nodeName") and not is_finished(pod):
            status = pod_status(pod, runs)
            if status != pod["status"]:
                self._pods.put({**pod, "status": status})

    def _runs_of(self, pod: Json) -> dict[str, ContainerRun]:
        """Return the runs of a pod; those that a former server began are found on disk."""
        uid = uid_of(pod)
        if uid not in self._runs:
            self._runs[uid] = load_runs(self._state, pod)
        return self._runs[uid]


def _newly_started(before: Json, after: Json) -> list[str]:
    names = []
    for group in ("initContainerStatuses", "containerStatuses"):
        former = {c["name"]: c["state"] for c in before.get(group) or []}
        for container in after.get(group) or []:
            state = container["state"]
            failed = state.get("terminated", {}).get("reason") == "StartError"
            if "waiting" in former.get(container["name"], {"waiting": {}}) and not (
                "waiting" in state or failed
            ):
                names.append(container["name"])
    return names


def _seconds_left(pod: Json) -> float | None:
    deadline = pod["spec"].get("activeDeadlineSeconds")
    if deadline is None:
        return None
    return float(deadline - seconds_since(pod["status"]["startTime"]))
