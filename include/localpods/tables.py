"""Tables: the columns that `kubectl get` prints, which a server computes for it."""

from __future__ import annotations

from collections.abc import Callable

from localpods.objects import Json, is_deleting, seconds_since

# From an object to its cells.
_Row = Callable[[Json], list[object]]


def as_table(kind: str, objects: list[Json], version: str, *, columns: bool = True) -> Json:
    """Return a `Table` of objects.

    Args:
        kind: the objects' kind, such as `Pod`.
        objects: the objects.
        version: the newest resource version.
        columns: False to leave the columns out, as in all events of a watch but the first.
    """
    names, row = _KINDS[kind]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": version},
        "columnDefinitions": [
            {"name": name, "type": "string", "format": "", "description": "", "priority": 0}
            for name in names
        ]
        if columns
        else [],
        "rows": [{"cells": row(obj), "object": obj} for obj in objects],
    }


def _pod_row(pod: Json) -> list[object]:
    statuses = pod["status"].get("containerStatuses") or []
    ready = sum(status["ready"] for status in statuses)
    reasons = [
        state.get("reason")
        for status in [*(pod["status"].get("initContainerStatuses") or []), *statuses]
        for state in status["state"].values()
    ]
    # An error says more than the phase; a success is called `Completed`.
    shown = next(filter(None, reasons), None) or pod["status"]["phase"]
    status = "Terminating" if is_deleting(pod) else pod["status"].get("reason") or shown
    count = f"{ready}/{len(pod['spec']['containers'])}"
    return [pod["metadata"]["name"], count, status, "0", _age(pod)]


def _job_row(job: Json) -> list[object]:
    status, spec = job["status"], job["spec"]
    ended = (status.get("conditions") or [{"type": "Running", "lastTransitionTime": ""}])[0]
    done = f"{status.get('succeeded', 0)}/{spec.get('completions', 1)}"
    began = seconds_since(status["startTime"])
    last = ended["lastTransitionTime"]
    duration = began - (seconds_since(last) if last else 0)
    return [job["metadata"]["name"], ended["type"], done, _duration(duration), _age(job)]


def _event_row(event: Json) -> list[object]:
    subject = event["involvedObject"]
    return [
        _duration(seconds_since(event["lastTimestamp"])),
        event["type"],
        event["reason"],
        f"{subject['kind'].lower()}/{subject['name']}",
        event["message"],
    ]


def _age(obj: Json) -> str:
    return _duration(seconds_since(obj["metadata"]["creationTimestamp"]))


def _duration(seconds: float) -> str:
    """Write a duration as kubectl does: `45s`, `12m`, `5h`, `3d`."""
    for unit, size in (("d", 2 * 86400), ("h", 3 * 3600), ("m", 3 * 60)):
        if seconds >= size:
            return f"{int(seconds // {'d': 86400, 'h': 3600, 'm': 60}[unit])}{unit}"
    return f"{max(0, int(seconds))}s"


_KINDS: dict[str, tuple[tuple[str, ...], _Row]] = {
    "Pod": (("Name", "Ready", "Status", "Restarts", "Age"), _pod_row),
    "Job": (("Name", "Status", "Completions", "Duration", "Age"), _job_row),
    "Event": (("Last Seen", "Type", "Reason", "Object", "Message"), _event_row),
}
