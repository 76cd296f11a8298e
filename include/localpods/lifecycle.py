"""The life of pods: scheduling, starting, watching and ending, the work of a cluster's kubelet."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import time
from collections.abc import Callable

from localpods.collection import Collection
from localpods.containers import ContainerRun, Reaper
from localpods.environment import ContainerConfigError, build_command
from localpods.events import EventLog
from localpods.gpus import GPU_ANNOTATION, Unschedulable, choose_gpus, memory_limit
from localpods.images import ImageMap, ImageMissing
from localpods.objects import (
    NODE_NAME,
    Json,
    describe,
    is_deleting,
    is_finished,
    now,
    phase_of,
    seconds_since,
    uid_of,
)
from localpods.pod_status import condition, fail, pod_status
from localpods.state import StateDir

log = logging.getLogger("localpods")

# The interval at which a container whose image or secret is missing is tried again.
_RETRY_S = 1.0
_TICK_S = 0.05
# Killed processes take a moment to end.
_SHUTDOWN_MARGIN_S = 5.0


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
        self.reaper = Reaper()
        # Set when a container has ended.
        self.changed = asyncio.Event()
        # Called once for every pod that is deleted, before anything else happens to it.
        self.on_deletion: Callable[[Json], None] = lambda pod: None

    def reconcile(self) -> None:
        """Take every pod one step further."""
        self.reaper.reap()
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
        """Return a container's run, or None if it has not begun, or ended before a restart."""
        return self._runs.get(uid_of(pod), {}).get(container)

    def delete(self, pod: Json, grace: float | None) -> Json:
        """Request the end of a pod.

        Args:
            pod: the pod.
            grace: the seconds between SIGTERM and SIGKILL; None for those of the pod's spec.

        Returns:
            The pod as it is now; it may have been removed already.
        """
        if not is_deleting(pod):
            self.on_deletion(pod)
        seconds = pod["spec"]["terminationGracePeriodSeconds"] if grace is None else grace
        seconds = min(seconds, pod["metadata"].get("deletionGracePeriodSeconds", seconds))
        marked = copy.deepcopy(pod)
        marked["metadata"].setdefault("deletionTimestamp", now())
        marked["metadata"]["deletionGracePeriodSeconds"] = seconds
        marked = self._pods.put(marked)
        for name, run in self._runs.get(uid_of(pod), {}).items():
            if run.running:
                self._events.emit(marked, "Killing", f"Stopping container {name}")
                run.stop(seconds, "deleted")
        self._sync(marked)
        return self._pods.find(pod["metadata"]["namespace"], pod["metadata"]["name"]) or marked

    async def shut_down(self, grace: float) -> None:
        """End all pods; they count as failed, as those of a node that is shut down.

        Args:
            grace: the seconds between SIGTERM and SIGKILL.
        """
        runs = [run for runs in self._runs.values() for run in runs.values() if run.running]
        for run in runs:
            run.stop(grace, "shutdown")
        limit = time.monotonic() + grace + _SHUTDOWN_MARGIN_S
        while any(run.running for run in runs) and time.monotonic() < limit:
            self.reaper.reap()
            for run in runs:
                run.check()
            await asyncio.sleep(_TICK_S)
        for pod in self._pods.all():
            if self._runs.get(uid_of(pod)):
                self._update_status(pod)

    def _sync(self, pod: Json) -> None:
        pod = self._pods.current(pod)
        for run in self._runs.get(uid_of(pod), {}).values():
            run.check()
        if is_deleting(pod):
            self._terminate(pod)
        elif not is_finished(pod) and (pod["spec"].get("nodeName") or self._schedule(pod)):
            pod = self._pods.current(pod)
            self._run_containers(pod)
            self._update_status(pod)

    def _schedule(self, pod: Json) -> bool:
        running = [other for other in self._pods.all() if not is_finished(other)]
        changed = copy.deepcopy(pod)
        status = changed["status"]
        try:
            gpus = choose_gpus(pod, running, self._gpus)
        except Unschedulable as error:
            waits = condition(status, "PodScheduled", False, "Unschedulable", str(error))
            if status.get("conditions") != [waits]:
                status["conditions"] = [waits]
                self._pods.put(changed)
                self._events.emit(pod, "FailedScheduling", str(error), warning=True)
            return False
        changed["spec"]["nodeName"] = NODE_NAME
        status["startTime"] = now()
        status["conditions"] = [condition(status, "PodScheduled", True)]
        if self._gpus:
            annotations = changed["metadata"].get("annotations") or {}
            changed["metadata"]["annotations"] = {**annotations, GPU_ANNOTATION: ",".join(gpus)}
        self._pods.put(changed)
        self._events.emit(pod, "Scheduled", f"Successfully assigned to {NODE_NAME}")
        return True

    def _run_containers(self, pod: Json) -> None:
        runs = self._runs.setdefault(uid_of(pod), {})
        for container in pod["spec"].get("initContainers") or []:
            run = self._begin(pod, container)
            if run.exit is None or run.exit.code != 0:
                return
        for container in pod["spec"]["containers"]:
            self._begin(pod, container)
        if any(run.cause == "deadline" for run in runs.values()):
            for run in runs.values():
                run.stop(0, "deadline")

    def _begin(self, pod: Json, container: Json) -> ContainerRun:
        """Start a container that has not been started."""
        runs = self._runs[uid_of(pod)]
        name = container["name"]
        if name not in runs:
            folder = self._state.container_dir(uid_of(pod), name)
            runs[name] = ContainerRun(folder, self.reaper, self.changed.set)
        run = runs[name]
        if run.started_at or run.exit or time.monotonic() < run.next_try:
            return run
        run.next_try = time.monotonic() + _RETRY_S
        deadline = _seconds_left(pod)
        if deadline is not None and deadline <= 0:
            self._fail(pod, "DeadlineExceeded", "Pod was active longer than the deadline")
            return run
        try:
            command = build_command(
                pod,
                container,
                image=self._images.find(container["image"]),
                defaults=self._images.env,
                termination_message=run.termination_message,
                state=self._state,
            )
        except ImageMissing as error:
            self._hold(pod, run, "ErrImagePull", str(error))
            return run
        except ContainerConfigError as error:
            self._hold(pod, run, "CreateContainerConfigError", str(error))
            return run
        grace = pod["spec"]["terminationGracePeriodSeconds"]
        run.launch(command, memory=memory_limit(container), deadline=deadline, grace=grace)
        if run.started_at:
            log.info("pod %s: started container %s", describe(pod), name)
            self._events.emit(pod, "Started", f"Started container {name}")
        return run

    def _hold(self, pod: Json, run: ContainerRun, reason: str, message: str) -> None:
        if run.waiting != (reason, message):
            run.waiting = (reason, message)
            log.warning("pod %s: %s: %s", describe(pod), reason, message)
            self._events.emit(pod, "Failed", f"Error: {reason}: {message}", warning=True)

    def _update_status(self, pod: Json) -> None:
        pod = self._pods.current(pod)
        if is_finished(pod):
            return
        status = pod_status(pod, self._runs[uid_of(pod)])
        if status == pod["status"]:
            return
        changed = self._pods.put({**pod, "status": status})
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
        if reason := pod["status"].get("reason"):
            self._events.emit(pod, reason, pod["status"]["message"], warning=True)
        self._state.drop_temp(uid_of(pod))

    def _fail(self, pod: Json, reason: str, message: str) -> None:
        """Fail a pod as a whole."""
        runs = self._runs.get(uid_of(pod), {})
        for run in runs.values():
            run.stop(0, "deleted")
        self._events.emit(pod, reason, message, warning=True)
        current = self._pods.current(pod)
        self._pods.put(
            {**current, "status": {**pod_status(current, runs), **fail(reason, message)}}
        )

    def _terminate(self, pod: Json) -> None:
        runs = self._runs.get(uid_of(pod), {})
        if not any(run.running for run in runs.values()):
            self._pods.remove(pod)
            self._runs.pop(uid_of(pod), None)
            log.info("pod %s: deleted", describe(pod))
        elif not is_finished(pod):
            status = pod_status(pod, runs)
            if status != pod["status"]:
                self._pods.put({**pod, "status": status})


def _seconds_left(pod: Json) -> float | None:
    deadline = pod["spec"].get("activeDeadlineSeconds")
    if deadline is None:
        return None
    return float(deadline - seconds_since(pod["status"]["startTime"]))
