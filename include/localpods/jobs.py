"""Jobs: pods that are started until enough of them have succeeded.

Unlike in a cluster, a new pod follows a failed one after one second (then two, four, … up to
sixty), and a job does not outlive the server: the next one reports it as failed.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import time
from dataclasses import dataclass, field

from localpods.admission import admit_pod
from localpods.collection import Collection, EventLog
from localpods.kubelet import Kubelet
from localpods.objects import (
    Json,
    describe,
    is_deleting,
    is_finished,
    key_of,
    name_suffix,
    now,
    phase_of,
    seconds_since,
    uid_of,
)

log = logging.getLogger("localpods")

INDEX = "batch.kubernetes.io/job-completion-index"
_BACKOFF_LIMIT_S = 60.0


@dataclass
class _Progress:
    """The counted pods of a job by UID, the completed indexes, and the last failure's time."""

    counted: set[str] = field(default_factory=set)
    completed: set[int] = field(default_factory=set)
    failed_at: float = 0.0


class JobController:
    """Takes every job to its end."""

    def __init__(
        self, jobs: Collection, pods: Collection, events: EventLog, kubelet: Kubelet
    ) -> None:
        self._jobs = jobs
        self._pods = pods
        self._events = events
        self._kubelet = kubelet
        self._progress: dict[str, _Progress] = {}
        kubelet.on_deletion = self._on_deletion

    def reconcile(self) -> None:
        """Take every job one step further."""
        for job in self._jobs.all():
            try:
                self.sync(job)
            except Exception as error:
                # As for pods: one job fails, the server continues.
                log.exception("job %s", describe(job))
                with contextlib.suppress(OSError):
                    why = f"{type(error).__name__}: see the server's log"
                    self._conclude(job, "Failed", "InternalError", why)

    def delete(self, job: Json, grace: float | None) -> Json:
        """Delete a job's pods and then the job, and return it; see `Kubelet.delete`."""
        marked = copy.deepcopy(job)
        marked["metadata"].setdefault("deletionTimestamp", now())
        marked = self._jobs.put(marked)
        for pod in self._pods_of(job):
            self._kubelet.delete(pod, grace)
        self.sync(marked)
        return marked

    def sync(self, job: Json) -> None:
        """Count what has ended, start what is missing, and conclude the job."""
        pods = self._pods_of(job)
        if is_deleting(job):
            if not pods:
                self._jobs.remove(job)
                self._progress.pop(uid_of(job), None)
            return
        if is_concluded(job):
            return
        for pod in filter(is_finished, pods):
            self._count(job, pod)
        job = self._jobs.current(job)
        spec, status = job["spec"], job["status"]
        deadline = spec.get("activeDeadlineSeconds")
        if status.get("failed", 0) > spec["backoffLimit"]:
            message = "Job has reached the specified backoff limit"
            self._conclude(job, "Failed", "BackoffLimitExceeded", message)
        elif deadline is not None and seconds_since(status["startTime"]) >= deadline:
            message = "Job was active longer than specified deadline"
            self._conclude(job, "Failed", "DeadlineExceeded", message)
        elif status.get("succeeded", 0) >= spec["completions"]:
            message = "Reached expected number of succeeded pods"
            self._conclude(job, "Complete", "CompletionsReached", message)
        else:
            active = [pod for pod in pods if not is_finished(pod) and not is_deleting(pod)]
            active += [self._start(job, index) for index in self._missing(job, active)]
            ready = sum(phase_of(pod) == "Running" for pod in active)
            self._update(job, {**status, "active": len(active), "ready": ready})

    def _count(self, job: Json, pod: Json) -> None:
        """Count a pod's end, once."""
        progress = self._progress.setdefault(uid_of(job), _Progress())
        if uid_of(pod) in progress.counted:
            return
        progress.counted.add(uid_of(pod))
        status = dict(self._jobs.current(job)["status"])
        outcome = "succeeded" if phase_of(pod) == "Succeeded" else "failed"
        status[outcome] = status.get(outcome, 0) + 1
        if outcome == "failed":
            progress.failed_at = time.monotonic()
        elif (index := _index_of(pod)) is not None:
            progress.completed.add(index)
            status["completedIndexes"] = _ranges(progress.completed)
        self._update(job, status)

    def _on_deletion(self, pod: Json) -> None:
        """Count a deleted pod as failed at once, as a cluster does."""
        for job in self._jobs.all():
            if uid_of(job) == _owner_of(pod) and not is_concluded(job) and not is_deleting(job):
                self._count(job, pod)

    def _missing(self, job: Json, active: list[Json]) -> list[int | None]:
        """Return the completion indexes of the pods to start now (None without indexes)."""
        spec, status = job["spec"], job["status"]
        progress = self._progress.setdefault(uid_of(job), _Progress())
        if failed := status.get("failed", 0):
            wait = min(_BACKOFF_LIMIT_S, 2.0 ** (failed - 1))
            if time.monotonic() < progress.failed_at + wait:
                return []
        missing: list[int | None] = []
        if spec["completionMode"] == "Indexed":
            taken = progress.completed | {_index_of(pod) for pod in active}
            missing += [index for index in range(spec["completions"]) if index not in taken]
        else:
            missing += [None] * (spec["completions"] - status.get("succeeded", 0) - len(active))
        return missing[: max(0, spec["parallelism"] - len(active))]

    def _start(self, job: Json, index: int | None) -> Json:
        namespace, name = key_of(job)
        template = copy.deepcopy(job["spec"]["template"])
        given, spec = template.get("metadata") or {}, template["spec"]
        labels = dict(given.get("labels") or {})
        for prefix in ("", "batch.kubernetes.io/"):
            labels |= {f"{prefix}job-name": name, f"{prefix}controller-uid": uid_of(job)}
        stem = name
        if index is not None:
            stem = f"{name}-{index}"
            labels[INDEX] = str(index)
            spec.setdefault("hostname", stem)
            for container in spec["containers"]:
                variable = {"name": "JOB_COMPLETION_INDEX", "value": str(index)}
                container["env"] = [*(container.get("env") or []), variable]
        owner = {"name": name, "uid": uid_of(job), "controller": True}
        metadata = {
            "name": f"{stem}-{name_suffix()}",
            "generateName": f"{stem}-",
            "labels": labels,
            "annotations": given.get("annotations") or {},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", **owner}],
        }
        pod = self._pods.add(admit_pod({"metadata": metadata, "spec": spec}, namespace))
        self._events.emit(job, "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")
        self._kubelet.sync(pod)
        return self._pods.current(pod)

    def _conclude(self, job: Json, kind: str, reason: str, message: str) -> None:
        status = {k: v for k, v in job["status"].items() if k not in ("active", "ready")}
        if kind == "Complete":
            status["completionTime"] = now()
        status["conditions"] = [job_condition(kind, reason, message)]
        self._update(job, status)
        for pod in self._pods_of(job):
            if not is_finished(pod):
                self._kubelet.delete(pod, None)
        log.info("job %s: %s (%s)", describe(job), kind, reason)
        event = "Completed" if kind == "Complete" else reason
        self._events.emit(job, event, message, warning=kind == "Failed")

    def _update(self, job: Json, status: Json) -> None:
        current = self._jobs.current(job)
        if status != current["status"]:
            self._jobs.put({**current, "status": status})

    def _pods_of(self, job: Json) -> list[Json]:
        return [pod for pod in self._pods.all() if _owner_of(pod) == uid_of(job)]


def is_concluded(job: Json) -> bool:
    """Return True if a job has completed or failed."""
    return bool(job["status"].get("conditions"))


def job_condition(kind: str, reason: str, message: str) -> Json:
    """Return the condition that concludes a job."""
    texts = {"type": kind, "status": "True", "reason": reason, "message": message}
    return {**texts, "lastProbeTime": now(), "lastTransitionTime": now()}


def _index_of(pod: Json) -> int | None:
    index = (pod["metadata"].get("labels") or {}).get(INDEX)
    return None if index is None else int(index)


def _owner_of(pod: Json) -> str | None:
    owners = pod["metadata"].get("ownerReferences") or []
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), None)


def _ranges(indexes: set[int]) -> str:
    """Write indexes as Kubernetes does: `0-2,4`."""
    parts = []
    for _, run in itertools.groupby(enumerate(sorted(indexes)), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        parts.append(f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0]))
    return ",".join(parts)
