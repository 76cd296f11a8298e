"""Events: what happened to a pod or a job, for those who look on."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

from localpods.collection import Collection, Versions
from localpods.objects import Json, now, seconds_since, uid_of

# As in Kubernetes, where events go after an hour.
_KEPT_S = 3600.0
_COMPONENT = "localpods"


class EventLog:
    """All events of the last hour; a copy on disk survives the server."""

    def __init__(self, path: Path, versions: Versions) -> None:
        self._path = path
        self.collection = Collection("Event", "v1", "events", versions, self._persist)
        for event in _read(path):
            if seconds_since(event["lastTimestamp"]) < _KEPT_S:
                self.collection.load(event)
        self._rewrite()

    def emit(self, subject: Json, reason: str, message: str, *, warning: bool = False) -> None:
        """Record that something happened; the same once more only counts up.

        Args:
            subject: The pod or job.
            reason: A word such as `Started`.
            message: A sentence.
            warning: Whether it is bad news.
        """
        for event in self.collection.all():
            same = event["involvedObject"]["uid"] == uid_of(subject)
            if same and event["reason"] == reason and event["message"] == message:
                again = {**event, "count": event["count"] + 1, "lastTimestamp": now()}
                self.collection.put(again)
                return
        self.collection.add(_event(subject, reason, message, warning=warning))

    def expire(self) -> None:
        """Drop old events."""
        old = [e for e in self.collection.all() if seconds_since(e["lastTimestamp"]) >= _KEPT_S]
        for event in old:
            self.collection.remove(event)
        if old:
            self._rewrite()

    def _persist(self, before: Json | None, after: Json | None) -> None:
        if after is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(after) + "\n")

    def _rewrite(self) -> None:
        temporary = self._path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(event) + "\n" for event in self.collection.all())
        temporary.replace(self._path)


def _read(path: Path) -> list[Json]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    # A later line of an event replaces the earlier one; the last may be half written.
    events: dict[str, Json] = {}
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        events[uid_of(event)] = event
    return list(events.values())


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
