"""Tables: the columns that `kubectl get` prints, which a server computes for it."""

from __future__ import annotations

from localpods.objects import Json, is_deleting, seconds_since

_COLUMNS = {
    "Pod": ("Name", "Ready", "Status", "Restarts", "Age"),
    "Job": ("Name", "Status", "Completions", "Duration", "Age"),
    "Event": ("Last Seen", "Type", "Reason", "Object", "Message"),
}


def as_table(kind: str, objects: list[Json], version: int) -> Json:
    """Return a `Table` of objects of one kind."""
    row = {"Pod": _pod_row, "Job": _job_row, "Event": _event_row}[kind]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": str(version)},
        "columnDefinitions": [
            {"name": name, "type": "string", "format": "", "description": "", "priority": 0}
            for name in _COLUMNS[kind]
        ],
        "rows": [{"cells": row(obj), "object": obj} for obj in objects],
    }


def _pod_row(pod: Json) -> list[object]:
    status = pod["status"]
    containers = status.get("containerStatuses") or []
    ready = sum(container["ready"] for container in containers)
    # An error says more than the phase; a success is called `Completed`.
    reasons = (s.get("reason") for container in containers for s in container["state"].values())
    shown = status.get("reason") or next(filter(None, reasons), status["phase"])
    count = f"{ready}/{len(pod['spec']['containers'])}"
    shown = "Terminating" if is_deleting(pod) else shown
    return [pod["metadata"]["name"], count, shown, "0", _age(pod)]


def _job_row(job: Json) -> list[object]:
    status = job["status"]
    [end] = status.get("conditions") or [{"type": "Running"}]
    done = f"{status.get('succeeded', 0)}/{job['spec']['completions']}"
    duration = seconds_since(status["startTime"])
    if last := end.get("lastTransitionTime"):
        duration -= seconds_since(last)
    return [job["metadata"]["name"], end["type"], done, _duration(duration), _age(job)]


def _event_row(event: Json) -> list[object]:
    subject = event["involvedObject"]
    name = f"{subject['kind'].lower()}/{subject['name']}"
    last = _duration(seconds_since(event["lastTimestamp"]))
    return [last, event["type"], event["reason"], name, event["message"]]


def _age(obj: Json) -> str:
    return _duration(seconds_since(obj["metadata"]["creationTimestamp"]))


def _duration(seconds: float) -> str:
    """Write a duration in its largest unit, from two of them on: `45s`, `12m`, `5h`, `3d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, round(seconds))}s"
