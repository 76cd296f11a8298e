"""Events: what happened to a pod or a job, as `kubectl describe` and Airflow's task log show it."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from localpods.collection import Collection
from localpods.objects import NODE_NAME, Json, now, uid_of

# The oldest are dropped beyond this number. They are not kept over a restart.
_KEPT = 1000


class EventLog:
    """The newest events of the server."""

    def __init__(self, next_version: Callable[[], int]) -> None:
        self.collection = Collection("Event", next_version)

    def emit(self, subject: Json, reason: str, message: str, *, warning: bool = False) -> None:
        """Record an event of a pod or job; a repeated one increases the count of the first."""
        events = self.collection.all()
        for event in events:
            same = event["involvedObject"]["uid"] == uid_of(subject)
            if same and event["reason"] == reason and event["message"] == message:
                count = event["count"] + 1
                self.collection.put({**event, "count": count, "lastTimestamp": now()})
                return
        if len(events) >= _KEPT:
            self.collection.remove(events[0])
        self.collection.add(_event(subject, reason, message, warning=warning))


def _event(subject: Json, reason: str, message: str, *, warning: bool) -> Json:
    metadata, uid = subject["metadata"], str(uuid.uuid4())
    involved = {key: metadata[key] for key in ("namespace", "name", "uid")}
    kind = {key: subject[key] for key in ("kind", "apiVersion")}
    return {
        "kind": "Event",
        "apiVersion": "v1",
        "metadata": {
            "name": f"{metadata['name']}.{uid[:8]}",
            "namespace": metadata["namespace"],
            "uid": uid,
            "creationTimestamp": now(),
        },
        "involvedObject": {**kind, **involved},
        "reason": reason,
        "message": message,
        "type": "Warning" if warning else "Normal",
        "source": {"component": NODE_NAME},
        "firstTimestamp": now(),
        "lastTimestamp": now(),
        "count": 1,
    }
