"""Objects of one kind, their versions, and those who watch them change."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from localpods.objects import Json, key_of
from localpods.replies import ApiError, already_exists, not_found
from localpods.selectors import Selector

# A watcher that is further behind gets 410 Gone and lists anew, as in Kubernetes.
_HISTORY = 4096


class Versions:
    """Resource versions: numbers that grow, also over a restart of the server."""

    def __init__(self) -> None:
        # Milliseconds: far fewer than a thousand changes a second ever happen, so that the
        # next server starts above what this one gave out.
        self.latest = int(time.time() * 1000)

    def next(self) -> int:
        """Return a version that is newer than all before."""
        self.latest += 1
        return self.latest

    def exceed(self, version: int) -> None:
        """Make sure that all versions to come are newer, also when the clock was set back."""
        self.latest = max(self.latest, version)


@dataclass(frozen=True)
class Change:
    """An object before and after a change; `None` where it was not there."""

    version: int
    before: Json | None
    after: Json | None


class Collection:
    """All objects of one kind.

    Objects in it are never changed in place: `put` takes a changed copy. So what a watcher was
    given stays what it was.
    """

    def __init__(
        self,
        kind: str,
        api_version: str,
        plural: str,
        versions: Versions,
        persist: Callable[[Json | None, Json | None], None],
    ) -> None:
        self.kind = kind
        self.api_version = api_version
        self.plural = plural
        self._versions = versions
        self._persist = persist
        self._objects: dict[tuple[str, str], Json] = {}
        self._history: deque[Change] = deque(maxlen=_HISTORY)
        self._forgotten = versions.latest
        self._changed = asyncio.Event()

    def load(self, obj: Json) -> None:
        """Take back an object that a former server kept."""
        self._objects[key_of(obj)] = obj
        self._versions.exceed(int(obj["metadata"]["resourceVersion"]))

    def all(self) -> list[Json]:
        """Return all objects, oldest first."""
        return list(self._objects.values())

    def find(self, namespace: str, name: str) -> Json | None:
        """Return an object, or `None`."""
        return self._objects.get((namespace, name))

    def get(self, namespace: str, name: str) -> Json:
        """Return an object.

        Raises:
            ApiError: 404 when there is none.
        """
        obj = self.find(namespace, name)
        if obj is None:
            raise not_found(self.plural, name)
        return obj

    def add(self, obj: Json) -> Json:
        """Take in a new object.

        Raises:
            ApiError: 409 when its name is taken.
        """
        if key_of(obj) in self._objects:
            raise already_exists(self.plural, key_of(obj)[1])
        return self._change(None, obj)

    def put(self, obj: Json) -> Json:
        """Replace an object by a changed copy of it."""
        return self._change(self._objects[key_of(obj)], obj)

    def remove(self, obj: Json) -> None:
        """Take an object out."""
        self._change(self._objects[key_of(obj)], None)

    def select(self, namespace: str | None, selector: Selector) -> list[Json]:
        """Return the objects of a namespace (`None`: of all) that a selector selects."""
        return [obj for obj in self.all() if _selected(obj, namespace, selector)]

    def as_list(self, namespace: str | None, selector: Selector) -> Json:
        """Return the list object that the API answers a list request with."""
        return {
            "kind": f"{self.kind}List",
            "apiVersion": self.api_version,
            "metadata": {"resourceVersion": str(self._versions.latest)},
            "items": self.select(namespace, selector),
        }

    async def watch(
        self, namespace: str | None, selector: Selector, since: int | None
    ) -> AsyncIterator[Json]:
        """Yield watch events for ever.

        Args:
            namespace: Only objects of this namespace; `None` for all.
            selector: Only objects that it selects. One that is no longer selected is `DELETED`.
            since: Changes after this version; `None` starts with what is there, as `ADDED`.

        Yields:
            `{"type": "ADDED" | "MODIFIED" | "DELETED", "object": …}`.

        Raises:
            ApiError: 410 when changes after `since` are no longer known.
        """
        position = self._versions.latest if since is None else since
        if since is None:
            for obj in self.select(namespace, selector):
                yield {"type": "ADDED", "object": obj}
        while True:
            changed = self._changed
            if position < self._forgotten:
                raise ApiError(410, "Expired", f"too old resource version: {position}")
            for change in [change for change in self._history if change.version > position]:
                position = change.version
                event = _event(change, namespace, selector)
                if event is not None:
                    yield event
            await changed.wait()

    def _change(self, before: Json | None, after: Json | None) -> Json:
        version = self._versions.next()
        subject = before if after is None else after
        assert subject is not None
        # Deleted objects, too, are shown to watchers under the version of the change.
        subject = {
            **subject,
            "metadata": {**subject["metadata"], "resourceVersion": str(version)},
        }
        if after is None:
            del self._objects[key_of(subject)]
            change = Change(version, subject, None)
        else:
            self._objects[key_of(subject)] = subject
            change = Change(version, before, subject)
        self._persist(before, None if after is None else subject)
        if len(self._history) == _HISTORY:
            self._forgotten = self._history[0].version
        self._history.append(change)
        self._changed.set()
        self._changed = asyncio.Event()
        return subject


def _selected(obj: Json, namespace: str | None, selector: Selector) -> bool:
    return namespace in (None, obj["metadata"]["namespace"]) and selector.matches(obj)


def _event(change: Change, namespace: str | None, selector: Selector) -> Json | None:
    was = change.before is not None and _selected(change.before, namespace, selector)
    if change.after is not None and _selected(change.after, namespace, selector):
        return {"type": "MODIFIED" if was else "ADDED", "object": change.after}
    if was:
        return {"type": "DELETED", "object": change.after or change.before}
    return None
