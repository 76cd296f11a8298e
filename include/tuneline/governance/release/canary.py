"""What a canary leaves in the release log, and the rollback of one that failed."""

from __future__ import annotations

from typing import Literal

from tuneline.artifacts.governance import ReleasePointer
from tuneline.artifacts.release_log import Canary, Event, Withdrawn, read_log
from tuneline.artifacts.releases import read_release, standing_moves
from tuneline.errors import UserError
from tuneline.governance.release.pointer import read_pointer, record
from tuneline.governance.release.rollback import roll_back
from tuneline.store import Changed, Store

BY = "canary"
# Another writer may record something of the same model between reading and writing.
_TRIES = 5


class CanaryLog:
    """Records the canaries of a store in the release logs of their versions.

    Args:
        store: the store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def due(self, name: str, version: str) -> bool:
        """Return True if a version was promoted and has not come through a canary yet.

        What a person has gone back to is not tried again.
        """
        pointer = read_release(self._store, name)
        if pointer is None or not pointer.history or pointer.history[-1].event != "released":
            return False
        events = [line.event for line in read_log(self._store, name, version).lines()]
        return not any(isinstance(e, Canary) and e.outcome != "started" for e in events)

    def started(self, name: str, version: str, share: float) -> None:
        """Record that a canary has begun, once."""
        events = [line.event for line in read_log(self._store, name, version).lines()]
        if not any(isinstance(event, Canary) for event in events):
            self._append(name, version, [self._event(share, "started", "it was released")])

    def promoted(self, name: str, version: str, share: float, reason: str) -> None:
        """Record that a version has come through its canary."""
        self._append(name, version, [self._event(share, "promoted", reason)])

    def withdrawn(self, name: str, version: str, share: float, reason: str) -> None:
        """Release the version before again, and record that this one is withdrawn.

        One whose own canary was not decided, since this one was released over it, is passed over.

        Raises:
            UserError: if there is no version to go back to.
        """
        pointer = read_release(self._store, name)
        if pointer is not None and pointer.version == version:
            target = self._proven_before(pointer)
            roll_back(self._store, name, target, by=BY, reason=f"{version}: {reason}")
        outcome = self._event(share, "withdrawn", reason)
        self._append(name, version, [outcome, Withdrawn(by=BY, reason=reason)])

    def _proven_before(self, pointer: ReleasePointer) -> str | None:
        """Return the last version before that no open canary doubts, None if there is none."""
        for move in reversed(standing_moves(pointer.history)[:-1]):
            events = [e.event for e in read_log(self._store, pointer.name, move.version).lines()]
            outcomes = {event.outcome for event in events if isinstance(event, Canary)}
            if outcomes != {"started"}:
                return move.version
        return None

    @staticmethod
    def _event(
        share: float, outcome: Literal["started", "promoted", "withdrawn"], summary: str
    ) -> Canary:
        return Canary(share=share, outcome=outcome, summary=summary, by=BY)

    def _append(self, name: str, version: str, events: list[Event]) -> None:
        for _ in range(_TRIES):
            lines = read_log(self._store, name, version).lines()
            if not lines:
                raise UserError(f"{name} {version} has no release log; restore it")
            try:
                record(read_pointer(self._store, name), version, lines[0].previous_sha256, events)
            except Changed:
                continue
            return
        raise UserError(f"the pointer of {name} is written by others all the time; try again")
