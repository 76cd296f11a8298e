"""The objects of one kind and their changes."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from localpods.objects import Json, key_of, uid_of
from localpods.replies import ApiError
from localpods.selectors import Selector
from localpods.state import StateDir

# Deleted objects that a watch can still report to a client which listed them before.
_REMEMBERED_DELETIONS = 1000


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
        """Yield changes without end: kubectl and deferred tasks wait with it.

        A watcher sees the newest state of an object; states between two looks may be left out.

        Args:
            namespace: the namespace of the objects; None for all.
            selector: the selector; an object that no longer matches counts as deleted.
            since: a resource version; None to begin with all objects that exist.

        Yields:
            `ADDED`, `MODIFIED` or `DELETED`, and the object.
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
