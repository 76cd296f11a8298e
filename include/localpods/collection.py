"""The objects of one kind and their changes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from localpods.objects import Json, key_of, uid_of
from localpods.replies import already_exists, not_found
from localpods.selectors import Selector

# Deleted objects that a watch can still report to a client which listed them before.
_REMEMBERED_DELETIONS = 1000


class Versions:
    """Resource versions: numbers that grow, also over a restart of the server."""

    def __init__(self) -> None:
        # Milliseconds: fewer than a thousand changes happen per second, so that the next
        # server starts above the last version of this one.
        self.latest = int(time.time() * 1000)

    def next(self) -> int:
        """Return a version that is newer than all before."""
        self.latest += 1
        return self.latest


class Collection:
    """All objects of one kind.

    An object in it is never changed in place: `put` takes a changed copy.
    """

    def __init__(
        self,
        kind: str,
        api_version: str,
        plural: str,
        versions: Versions,
        persist: Callable[[Json | None, Json | None], None] = lambda before, after: None,
    ) -> None:
        self.kind = kind
        self.api_version = api_version
        self.plural = plural
        self._versions = versions
        self._persist = persist
        self._objects: dict[tuple[str, str], Json] = {}
        self._deleted: deque[Json] = deque(maxlen=_REMEMBERED_DELETIONS)
        self._changed = asyncio.Event()

    @property
    def version(self) -> str:
        """The newest resource version of the server."""
        return str(self._versions.latest)

    def all(self) -> list[Json]:
        """Return all objects, oldest first."""
        return list(self._objects.values())

    def find(self, namespace: str, name: str) -> Json | None:
        """Return an object, or None."""
        return self._objects.get((namespace, name))

    def get(self, namespace: str, name: str) -> Json:
        """Return an object.

        Raises:
            ApiError: 404 if it does not exist.
        """
        obj = self.find(namespace, name)
        if obj is None:
            raise not_found(self.plural, name)
        return obj

    def current(self, obj: Json) -> Json:
        """Return the newest version of an object."""
        return self.get(*key_of(obj))

    def add(self, obj: Json) -> Json:
        """Add a new object.

        Raises:
            ApiError: 409 if its name is taken.
        """
        if key_of(obj) in self._objects:
            raise already_exists(self.plural, key_of(obj)[1])
        return self._change(None, obj)

    def put(self, obj: Json) -> Json:
        """Replace an object by a changed copy of it."""
        return self._change(self._objects[key_of(obj)], obj)

    def remove(self, obj: Json) -> None:
        """Remove an object."""
        before = self._objects.pop(key_of(obj))
        self._deleted.append(self._stamped(before))
        self._persist(before, None)
        self._wake()

    def select(self, namespace: str | None, selector: Selector) -> list[Json]:
        """Return the objects of a namespace (None: of all) that match a selector."""
        return [obj for obj in self.all() if _selected(obj, namespace, selector)]

    async def watch(
        self, namespace: str | None, selector: Selector, since: int | None
    ) -> AsyncIterator[tuple[str, Json]]:
        """Yield changes without end: kubectl waits for deletions with it.

        A watcher sees the newest state of an object; states between two looks may be left out.

        Args:
            namespace: the namespace of the objects; None for all.
            selector: the selector that objects must match; an object that no longer does counts
                as deleted.
            since: the resource version after which changes are reported; None to begin with all
                objects that exist.

        Yields:
            `ADDED`, `MODIFIED` or `DELETED`, and the object.
        """
        known = set[str]()
        position = since or 0
        if since is None:
            position = self._versions.latest
            for obj in self.select(namespace, selector):
                known.add(uid_of(obj))
                yield "ADDED", obj
        else:
            old = [obj for obj in self.all() if _version(obj) <= since]
            seen = [*old, *(obj for obj in self._deleted if _version(obj) > since)]
            known |= {uid_of(obj) for obj in seen if _selected(obj, namespace, selector)}
        while True:
            changed = self._changed
            found = [(obj, False) for obj in self.all()] + [(obj, True) for obj in self._deleted]
            news = [(obj, gone) for obj, gone in found if _version(obj) > position]
            for obj, gone in sorted(news, key=lambda entry: _version(entry[0])):
                position, uid = _version(obj), uid_of(obj)
                selected = not gone and _selected(obj, namespace, selector)
                if selected:
                    yield "MODIFIED" if uid in known else "ADDED", obj
                    known.add(uid)
                elif uid in known:
                    known.discard(uid)
                    yield "DELETED", obj
            await changed.wait()

    def _change(self, before: Json | None, after: Json) -> Json:
        after = self._stamped(after)
        self._objects[key_of(after)] = after
        self._persist(before, after)
        self._wake()
        return after

    def _stamped(self, obj: Json) -> Json:
        version = str(self._versions.next())
        return {**obj, "metadata": {**obj["metadata"], "resourceVersion": version}}

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _version(obj: Json) -> int:
    return int(obj["metadata"]["resourceVersion"])


def _selected(obj: Json, namespace: str | None, selector: Selector) -> bool:
    return namespace in (None, obj["metadata"]["namespace"]) and selector.matches(obj)
