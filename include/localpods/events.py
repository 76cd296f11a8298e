"""Events: what happened to a pod or a job, as `kubectl describe` and Airflow's task log show it."""

from __future__ import annotations

import uuid

from localpods.collection import Collection, Versions
from localpods.objects import Json, now, uid_of

# The oldest are dropped beyond this number. They are not kept over a restart.
_KEPT = 1000
_COMPONENT = "localpods"


class EventLog:
    """The newest events of the server."""

    def __init__(self, versions: Versions) -> None:
        self.collection = Collection("Event", "v1", "events", versions)

    def emit(self, subject: Json, reason: str, message: str, *, warning: bool = False) -> None:
        """Record an event; a repeated one increases the count of the first.

        Args:
            subject: the pod or job.
            reason: a word such as `Started`.
            message: a sentence.
            warning: True for bad news.
        """
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
    metadata = subject["metadata"]
    uid = str(uuid.uuid4())
    return {
        "kind": "Event",
        "apiVersion": "v1",
        "metadata": {
            "name": f"{metadata['name']}.{uid[:8]}",
            "namespace": metadata["namespace"],
            "uid": uid,
            "creationTimestamp": now(),
        },
        "involvedObject": {
            "kind": subject["kind"],
            "apiVersion": subject["apiVersion"],
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
        "reason": reason,
        "message": message,
        "type": "Warning" if warning else "Normal",
        "source": {"component": _COMPONENT},
        "reportingComponent": _COMPONENT,
        "reportingInstance": _COMPONENT,
        "firstTimestamp": now(),
        "lastTimestamp": now(),
        "count": 1,
    }
