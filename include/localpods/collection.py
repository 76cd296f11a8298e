"""The objects of one kind and their changes; selectors, and events of pods and jobs."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from localpods.objects import NODE_NAME, ApiError, Json, bad_request, key_of, now, uid_of
from localpods.state import StateDir

_KEY = r"(?P<key>[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?)"
_VALUE = r"(?P<value>([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?)"
_LABEL = (
    re.compile(rf"{_KEY}\s+(?P<operator>in|notin)\s*\((?P<values>[^()]*)\)"),
    re.compile(rf"{_KEY}\s*(?P<operator>==|=|!=)\s*{_VALUE}"),
    re.compile(rf"(?P<operator>!?)\s*{_KEY}"),
)
_FIELD = re.compile(r"(?P<key>[^=!]+?)\s*(?P<operator>==|=|!=)\s*(?P<value>.*)")
# Commas inside parentheses separate values; all others separate requirements.
_SEPARATOR = re.compile(r",(?![^(]*\))")

_OBJECT_FIELDS = frozenset({"metadata.name", "metadata.namespace"})
_SUBJECT_FIELDS = {f"involvedObject.{name}" for name in ("kind", "name", "namespace", "uid")}
_FIELDS = {
    "Pod": _OBJECT_FIELDS | {"spec.nodeName", "spec.restartPolicy", "status.phase"},
    "Job": _OBJECT_FIELDS,
    "Event": _OBJECT_FIELDS | _SUBJECT_FIELDS | {"reason", "type"},
}

# Deleted objects that a watch can still report to a client which listed them before.
_REMEMBERED_DELETIONS = 1000
# The oldest are dropped beyond this number. They are not kept over a restart.
_KEPT = 1000


@dataclass(frozen=True)
class _Requirement:
    """A key with one of these values (None: any); not `wanted` means that it must not match."""

    key: str
    values: frozenset[str] | None
    wanted: bool

    def matches(self, labels: Mapping[str, str]) -> bool:
        found = self.key in labels and (self.values is None or labels[self.key] in self.values)
        return found is self.wanted


class Selector:
    """A selector such as `a=b,c!=d,!e,f in (g,h)` on labels and `status.phase=Failed` on fields.

    Raises:
        ApiError: 400 if a requirement cannot be read, or a field of the kind is not supported.
    """

    def __init__(self, labels: str = "", fields: str = "", kind: str = "Pod") -> None:
        self._labels = _parse(labels, *_LABEL)
        self._fields = _parse(fields, _FIELD)
        for requirement in self._fields:
            if requirement.key not in _FIELDS[kind]:
                raise bad_request(f"field label not supported: {requirement.key}")

    def matches(self, obj: Json) -> bool:
        """Return True if an object meets all requirements."""
        labels = obj["metadata"].get("labels") or {}
        return all(requirement.matches(labels) for requirement in self._labels) and all(
            requirement.matches({requirement.key: _field(obj, requirement.key)})
            for requirement in self._fields
        )


def _parse(text: str, *forms: re.Pattern[str]) -> list[_Requirement]:
    requirements = []
    for part in _SEPARATOR.split(text) if text.strip() else []:
        match = next(filter(None, (form.fullmatch(part.strip()) for form in forms)), None)
        if match is None:
            raise bad_request(f"unable to parse requirement: {part!r}")
        groups = match.groupdict()
        given = groups["values"].split(",") if "values" in groups else [groups.get("value")]
        values = frozenset(value.strip() for value in given if value is not None)
        exists = "value" not in groups and "values" not in groups
        wanted = groups["operator"] not in ("!", "!=", "notin")
        requirements.append(_Requirement(groups["key"], None if exists else values, wanted))
    return requirements


def _field(obj: Json, path: str) -> str:
    value: object = obj
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def resource_versions() -> Callable[[], int]:
    """Return a counter that is above those of all former servers.

    It starts at the clock's milliseconds: fewer than a thousand changes happen per second.
    """
    return itertools.count(int(time.time() * 1000)).__next__


class Collection:
    """All objects of one kind; they are never changed in place: `put` takes a changed copy."""

    def __init__(
        self, kind: str, next_version: Callable[[], int], state: StateDir | None = None
    ) -> None:
        self.kind = kind
        self.version = next_version()
        self._next_version = next_version
        self._state = state
        self._objects: dict[tuple[str, str], Json] = {}
        self._deleted: deque[Json] = deque(maxlen=_REMEMBERED_DELETIONS)
        self._changed = asyncio.Event()

    def all(self) -> list[Json]:
        """Return all objects, oldest first."""
        return list(self._objects.values())

    def find(self, namespace: str, name: str) -> Json | None:
        """Return an object, or None."""
        return self._objects.get((namespace, name))

    def get(self, namespace: str, name: str) -> Json:
        """Return an object; raise an `ApiError` 404 if it does not exist."""
        obj = self.find(namespace, name)
        if obj is None:
            raise self._error(404, "NotFound", name, "not found")
        return obj

    def current(self, obj: Json) -> Json:
        """Return the newest version of an object."""
        return self.get(*key_of(obj))

    def add(self, obj: Json) -> Json:
        """Add a new object; raise an `ApiError` 409 if its name is taken."""
        if key_of(obj) in self._objects:
            raise self._error(409, "AlreadyExists", key_of(obj)[1], "already exists")
        return self.put(obj)

    def put(self, obj: Json) -> Json:
        """Replace an object by a changed copy of it."""
        obj = self._stamped(obj)
        self._objects[key_of(obj)] = obj
        if self._state is not None:
            self._state.save(obj)
        return obj

    def remove(self, obj: Json) -> None:
        """Remove an object."""
        self._deleted.append(self._stamped(self._objects.pop(key_of(obj))))
        if self._state is not None:
            self._state.drop(uid_of(obj))

    def select(self, namespace: str | None, selector: Selector) -> list[Json]:
        """Return the objects of a namespace (None: of all) that match a selector."""
        return [obj for obj in self.all() if _selected(obj, namespace, selector)]

    async def watch(
        self, namespace: str | None, selector: Selector, since: int | None
    ) -> AsyncIterator[tuple[str, Json]]:
        """Yield changes without end, each as `ADDED`, `MODIFIED` or `DELETED` and the object.

        A watcher sees the newest state of an object; states between two looks may be left out. An
        object that no longer matches the selector counts as deleted.

        Args:
            since: a resource version; None to begin with all objects that exist.
        """
        position = 0 if since is None else since
        seen = [obj for obj in self.all() if version_of(obj) <= position]
        if since is not None:
            seen += [obj for obj in self._deleted if version_of(obj) > position]
        known = {uid_of(obj) for obj in seen if _selected(obj, namespace, selector)}
        while True:
            changed = self._changed
            found = [(obj, False) for obj in self.all()] + [(obj, True) for obj in self._deleted]
            news = [(obj, gone) for obj, gone in found if version_of(obj) > position]
            for obj, gone in sorted(news, key=lambda entry: version_of(entry[0])):
                position, uid = version_of(obj), uid_of(obj)
                if not gone and _selected(obj, namespace, selector):
                    yield "MODIFIED" if uid in known else "ADDED", obj
                    known.add(uid)
                elif uid in known:
                    known.discard(uid)
                    yield "DELETED", obj
            await changed.wait()

    def _error(self, code: int, reason: str, name: str, why: str) -> ApiError:
        plural = f"{self.kind.lower()}s"
        return ApiError(code, reason, f'{plural} "{name}" {why}', {"name": name, "kind": plural})

    def _stamped(self, obj: Json) -> Json:
        """Return an object with a new resource version, and wake its watchers."""
        self.version = self._next_version()
        self._changed.set()
        self._changed = asyncio.Event()
        return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}


def version_of(obj: Json) -> int:
    """Return the resource version of an object."""
    return int(obj["metadata"]["resourceVersion"])


def _selected(obj: Json, namespace: str | None, selector: Selector) -> bool:
    return namespace in (None, obj["metadata"]["namespace"]) and selector.matches(obj)


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
