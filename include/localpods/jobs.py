"""Jobs: pods that are started until enough of them have succeeded.

As in a cluster, a pod carries a finalizer until its end has been counted in the job's status, so
that a pod is counted once, also over a restart. Unlike there, a new pod after a failed one comes
after one second (then two, four, … up to sixty), where a cluster waits ten.
"""

from __future__ import annotations

import contextlib
import copy
import logging

from localpods.admission import admit_pod
from localpods.collection import Collection
from localpods.events import EventLog
from localpods.lifecycle import Kubelet
from localpods.objects import (
    Json,
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

FINALIZER = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"
_BACKOFF_LIMIT_S = 60.0
# When the last pod failed; kept in the job, so that a restart does not shorten the wait.
_LAST_FAILURE = "localpods/last-failure"


class JobController:
    """Brings every job to its end."""

    def __init__(
        self, jobs: Collection, pods: Collection, events: EventLog, kubelet: Kubelet
    ) -> None:
        self._jobs = jobs
        self._pods = pods
        self._events = events
        self._kubelet = kubelet
        kubelet.on_removal = self._on_removal

    def reconcile(self) -> None:
        """Bring every job one step further."""
        for job in self._jobs.all():
            try:
                self.sync(job)
            except Exception as error:
                # As for pods: one job fails, the server goes on.
                log.exception("job %s", "/".join(key_of(job)))
                with contextlib.suppress(OSError):
                    why = f"{type(error).__name__}: see the server's log"
                    self._conclude(job, [], "Failed", "InternalError", why)

    def delete(self, job: Json, policy: str, grace: float | None) -> Json:
        """Delete a job.

        Args:
            job: The job.
            policy: `Background` and `Foreground` delete its pods, too, `Orphan` does not; with
                `Foreground` the job goes after them.
            grace: The pods' grace period in seconds; `None` for what their spec says.

        Returns:
            The job as it is now, or was.
        """
        marked = copy.deepcopy(job)
        marked["metadata"].setdefault("deletionTimestamp", now())
        marked = self._jobs.put(marked)
        if policy != "Orphan":
            for pod in self._pods_of(job):
                if not is_deleting(pod):
                    self._kubelet.delete(pod, grace)
        if policy != "Foreground" or not self._pods_of(job):
            self._remove(marked)
        return marked

    def sync(self, job: Json) -> None:
        """Count what has ended, start what is missing, and conclude the job."""
        if is_deleting(job):
            if not self._pods_of(job):
                self._remove(job)
            return
        if is_concluded(job):
            self._expire(job)
            return
        job = self._count_finished(job)
        pods = self._pods_of(job)
        spec, status = job["spec"], job["status"]
        active = [pod for pod in pods if not is_finished(pod) and not is_deleting(pod)]
        deadline = spec.get("activeDeadlineSeconds")
        if status.get("failed", 0) > spec["backoffLimit"]:
            message = "Job has reached the specified backoff limit"
            self._conclude(job, active, "Failed", "BackoffLimitExceeded", message)
        elif deadline is not None and seconds_since(status["startTime"]) >= deadline:
            message = "Job was active longer than specified deadline"
            self._conclude(job, active, "Failed", "DeadlineExceeded", message)
        elif _is_complete(job, len(active)):
            message = "Reached expected number of succeeded pods"
            self._conclude(job, active, "Complete", "CompletionsReached", message)
        else:
            missing = self._missing(job, active)
            for index in missing:
                active.append(self._start(job, index))
            self._update(job, active)

    def _count_finished(self, job: Json) -> Json:
        for pod in self._pods_of(job):
            if is_finished(pod) and FINALIZER in (pod["metadata"].get("finalizers") or []):
                self._release(pod)
                job = self._count(job, pod, succeeded=phase_of(pod) == "Succeeded")
        return job

    def _count(self, job: Json, pod: Json, *, succeeded: bool) -> Json:
        changed = copy.deepcopy(job)
        status = changed["status"]
        if not succeeded:
            status["failed"] = status.get("failed", 0) + 1
            annotations = changed["metadata"].get("annotations") or {}
            changed["metadata"]["annotations"] = {**annotations, _LAST_FAILURE: now()}
        elif (index := _index_of(pod)) is None:
            status["succeeded"] = status.get("succeeded", 0) + 1
        else:
            done = completed_indexes(job) | {index}
            status["completedIndexes"] = _ranges(done)
            status["succeeded"] = len(done)
        return self._jobs.put(changed)

    def _release(self, pod: Json) -> None:
        changed = copy.deepcopy(pod)
        changed["metadata"].pop("finalizers")
        self._pods.put(changed)

    def _on_removal(self, pod: Json) -> None:
        """Count a pod that is taken out before its end was counted."""
        if FINALIZER not in (pod["metadata"].get("finalizers") or []):
            return
        for job in self._jobs.all():
            if uid_of(job) == _owner_of(pod) and not is_concluded(job) and not is_deleting(job):
                self._count(job, pod, succeeded=phase_of(pod) == "Succeeded")

    def _missing(self, job: Json, active: list[Json]) -> list[int | None]:
        """Return the completion indexes of the pods to start now (`None` without indexes)."""
        spec, status = job["spec"], job["status"]
        if failed := status.get("failed", 0):
            last = (job["metadata"].get("annotations") or {}).get(_LAST_FAILURE)
            wait = min(_BACKOFF_LIMIT_S, 2.0 ** (failed - 1))
            if last is not None and seconds_since(last) < wait:
                return []
        room = spec["parallelism"] - len(active)
        if spec["completionMode"] == "Indexed":
            taken = completed_indexes(job) | {_index_of(pod) for pod in active}
            open_indexes = [i for i in range(spec["completions"]) if i not in taken]
            return list(open_indexes[: max(0, room)])
        succeeded = status.get("succeeded", 0)
        if "completions" in spec:
            room = min(room, spec["completions"] - succeeded - len(active))
        elif succeeded:
            # A work queue: once one has found it empty, no more are started.
            room = 0
        return [None] * max(0, room)

    def _start(self, job: Json, index: int | None) -> Json:
        namespace, name = key_of(job)
        template = copy.deepcopy(job["spec"]["template"])
        given = template.get("metadata") or {}
        labels = {
            **(given.get("labels") or {}),
            "job-name": name,
            "batch.kubernetes.io/job-name": name,
            "controller-uid": uid_of(job),
            "batch.kubernetes.io/controller-uid": uid_of(job),
        }
        annotations = dict(given.get("annotations") or {})
        spec = template["spec"]
        stem = name
        if index is not None:
            stem = f"{name}-{index}"
            labels[INDEX] = annotations[INDEX] = str(index)
            spec.setdefault("hostname", stem)
            for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
                container["env"] = [
                    *(container.get("env") or []),
                    {
                        "name": "JOB_COMPLETION_INDEX",
                        "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{INDEX}']"}},
                    },
                ]
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": name,
            "uid": uid_of(job),
            "controller": True,
            "blockOwnerDeletion": True,
        }
        metadata = {
            "name": f"{stem}-{name_suffix()}",
            "generateName": f"{stem}-",
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner],
            "finalizers": [FINALIZER],
        }
        pod = self._pods.add(admit_pod({"metadata": metadata, "spec": spec}, namespace))
        self._events.emit(job, "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")
        return pod

    def _conclude(
        self, job: Json, active: list[Json], kind: str, reason: str, message: str
    ) -> None:
        for pod in active:
            self._release(pod)
            self._kubelet.delete(self._pods.get(*key_of(pod)), None)
        changed = copy.deepcopy(self._jobs.get(*key_of(job)))
        status = changed["status"]
        for field in ("active", "ready"):
            status.pop(field, None)
        if kind == "Complete":
            status["completionTime"] = now()
        status["conditions"] = [job_condition(kind, reason, message)]
        self._jobs.put(changed)
        log.info("job %s: %s (%s)", "/".join(key_of(job)), kind, reason)
        event = "Completed" if kind == "Complete" else reason
        self._events.emit(job, event, message, warning=kind == "Failed")

    def _update(self, job: Json, active: list[Json]) -> None:
        status = {
            **job["status"],
            "active": len(active),
            "ready": sum(phase_of(pod) == "Running" for pod in active),
        }
        if status != job["status"]:
            self._jobs.put({**job, "status": status})

    def _expire(self, job: Json) -> None:
        kept = job["spec"].get("ttlSecondsAfterFinished")
        ended = job["status"]["conditions"][0]["lastTransitionTime"]
        if kept is not None and seconds_since(ended) >= kept:
            self.delete(job, "Background", None)

    def _remove(self, job: Json) -> None:
        self._jobs.remove(job)

    def _pods_of(self, job: Json) -> list[Json]:
        return [pod for pod in self._pods.all() if _owner_of(pod) == uid_of(job)]


def is_concluded(job: Json) -> bool:
    """Tell whether a job has completed or failed."""
    return bool(job["status"].get("conditions"))


def job_condition(kind: str, reason: str, message: str) -> Json:
    """Return the condition that concludes a job."""
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastProbeTime": now(),
        "lastTransitionTime": now(),
    }


def completed_indexes(job: Json) -> set[int | None]:
    """Return the indexes of an Indexed job that have succeeded."""
    done: set[int | None] = set()
    for part in filter(None, job["status"].get("completedIndexes", "").split(",")):
        first, _, last = part.partition("-")
        done.update(range(int(first), int(last or first) + 1))
    return done


def _is_complete(job: Json, active: int) -> bool:
    succeeded = job["status"].get("succeeded", 0)
    completions = job["spec"].get("completions")
    if completions is None:
        return bool(succeeded and not active)
    return bool(succeeded >= completions)


def _index_of(pod: Json) -> int | None:
    index = (pod["metadata"].get("labels") or {}).get(INDEX)
    return None if index is None else int(index)


def _owner_of(pod: Json) -> str | None:
    for owner in pod["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            return str(owner["uid"])
    return None


def _ranges(indexes: set[int | None]) -> str:
    """Write indexes as Kubernetes does: `0-2,4`."""
    parts: list[list[int]] = []
    for index in sorted(index for index in indexes if index is not None):
        if parts and parts[-1][-1] == index - 1:
            parts[-1] = [parts[-1][0], index]
        else:
            parts.append([index])
    return ",".join("-".join(map(str, part)) for part in parts)
