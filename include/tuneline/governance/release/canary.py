"""What a canary leaves in the release log, and the rollback of one that failed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from tuneline.artifacts.governance import PointerName, ReleasePointer
from tuneline.artifacts.release_log import (
    Canary,
    Event,
    Line,
    Released,
    RolledBack,
    Withdrawn,
    read_log,
    withdrawal,
)
from tuneline.artifacts.releases import (
    current_release,
    find_version,
    previous_version,
    read_release,
    standing_moves,
)
from tuneline.config.governance import ReleaseCanaryConfig
from tuneline.errors import UserError
from tuneline.governance.release.pointer import complete, read_pointer, record
from tuneline.governance.release.rollback import roll_back
from tuneline.serving.following.chain import settings_of
from tuneline.store import Changed, Store

BY = "canary"
# Another writer may record something of the same model between reading and writing.
_TRIES = 5


class CanaryLog:
    """Records the canaries of a store in the release logs of their versions."""

    def __init__(self, store: Store, which: PointerName = "production") -> None:
        self._store, self._which = store, which

    def due(self, name: str, version: str) -> bool:
        """Return True if a version was promoted and has not come through a canary yet.

        What a person has gone back to is not tried again.
        """
        pointer = read_release(self._store, name, self._which)
        if pointer is None or not pointer.history or pointer.history[-1].event != "released":
            return False
        events = [line.event for line in self._lines(name, version)]
        return not any(isinstance(e, Canary) and e.outcome != "started" for e in events)

    def started(self, name: str, version: str, share: float) -> None:
        """Record that a canary has begun, once."""
        events = [line.event for line in self._lines(name, version)]
        if not any(isinstance(event, Canary) for event in events):
            began = Canary(share=share, outcome="started", summary="it was released", by=BY)
            self._append(name, version, [began])

    def promoted(self, name: str, version: str, share: float, reason: str) -> None:
        """Record that a version has come through its canary."""
        event = Canary(share=share, outcome="promoted", summary=reason, by=BY)
        self._append(name, version, [event])

    def withdrawn(self, name: str, version: str, share: float, reason: str) -> None:
        """Record that a version is withdrawn, then release the version before it again.

        In this order a withdrawal that breaks off leaves nothing that may be released again; the
        next call, or `go_back`, completes it.
        """
        pointer = self._completed(name)
        if pointer is not None and pointer.version == version:
            self._target(pointer)
        if withdrawal(self._lines(name, version)) is None:
            outcome = Canary(share=share, outcome="withdrawn", summary=reason, by=BY)
            self._append(name, version, [outcome, Withdrawn(by=BY, reason=reason)])
        self.go_back(name)

    def go_back(self, name: str) -> None:
        """Release the version before again if a canary has withdrawn the released one."""
        pointer = self._completed(name)
        if pointer is None:
            return
        events = [line.event for line in self._lines(name, pointer.version)]
        found = [e for e in events if isinstance(e, Withdrawn) and e.by == BY]
        if found:
            reason = f"{pointer.version}: {found[-1].reason}"
            target, which = self._target(pointer), self._which
            roll_back(self._store, name, target, by=BY, reason=reason, which=which)

    def _completed(self, name: str) -> ReleasePointer | None:
        """Return the pointer of a model, whose last lines are in their log."""
        pointed = read_pointer(self._store, name, self._which)
        complete(pointed)
        return pointed.pointer

    def _target(self, pointer: ReleasePointer) -> str:
        """Return the last version before that was not withdrawn, rather one that was proven."""
        doubted: str | None = None
        for move in reversed(standing_moves(pointer.history)[:-1]):
            lines = self._lines(pointer.name, move.version)
            if withdrawal(lines) is not None:
                continue
            outcomes = {line.event.outcome for line in lines if isinstance(line.event, Canary)}
            if outcomes != {"started"}:
                return move.version
            doubted = doubted or move.version
        if doubted is None:
            raise UserError(f"{pointer.name} {pointer.version} has no release to go back to")
        return doubted

    def _lines(self, name: str, version: str) -> list[Line]:
        return read_log(self._store, name, version).lines()

    def _append(self, name: str, version: str, events: list[Event]) -> None:
        for _ in range(_TRIES):
            lines = self._lines(name, version)
            if not lines:
                raise UserError(f"{name} {version} has no release log; restore it")
            try:
                pointed = read_pointer(self._store, name, self._which)
                record(pointed, version, lines[0].previous_sha256, events)
            except Changed:
                continue
            return
        raise UserError(f"the pointer of {name} is written by others all the time; try again")


Outcome = Literal["due", "under_way", "promoted", "withdrawn", "left"]

# The follower withdraws an undecided canary at its end, within seconds if it is at work.
SLACK = timedelta(minutes=30)


@dataclass(frozen=True)
class CanaryState:
    """How a canary stands."""

    outcome: Outcome  # `left`: the pointer was moved to another version before it was decided
    told: str  # one sentence for a person
    began: datetime | None = None


def canary_state(store: Store, name: str, version: str) -> CanaryState:
    """Return how the canary of a version that was released stands."""
    pointer = _pointer_with(store, name, version)
    if pointer is None:
        raise UserError(f"{store.uri} has no release of {name}; run promote again")
    lines = read_log(store, name, version).lines()
    canaries = [(line, line.event) for line in lines if isinstance(line.event, Canary)]
    for _, event in canaries:
        if event.outcome == "promoted":
            told = f"{name} {version} has come through its canary: {event.summary}"
            return CanaryState("promoted", told)
    if why := withdrawal(lines):
        # The canary writes its outcome before it moves the pointer.
        now = "serves now" if pointer.version != version else "is being left"
        told = f"{name} {version} was withdrawn: {why}; {pointer.version} {now}"
        return CanaryState("withdrawn", told)
    if pointer.version != version:
        return _left(store, pointer, version)
    if canaries:
        line, event = canaries[0]
        told = f"{name} {version} answers {event.share:.0%} of the keys since {line.at}"
        return CanaryState("under_way", told, datetime.fromisoformat(line.at))
    return CanaryState("due", f"no follower has begun the canary of {name} {version} yet")


def told_of(store: Store, name: str, version: str) -> str | None:
    """Return how the canary of a version stands for a person, None if it was never released."""
    lines = read_log(store, name, version).lines()
    if not any(isinstance(line.event, Released) for line in lines):
        return None
    return canary_state(store, name, version).told


def why_none(store: Store, name: str, version: str, asked: ReleaseCanaryConfig) -> str | None:
    """Return why a version that was just released has no canary, None if one is to come."""
    if not asked.share:
        return "the run asks for no canary (governance.canary.share is 0)"
    pointer = _pointer_with(store, name, version)
    if pointer and pointer.version == version and previous_version(pointer) is None:
        return f"{name} {version} is the first release, so there is nothing to compare it with"
    return None


def is_awaited(store: Store, name: str, version: str, now: datetime) -> bool:
    """Return True while a run may still wait for the canary of the version that it released."""
    release = find_version(store, name, version)
    asked = settings_of(release).canary if release else ReleaseCanaryConfig()
    if why_none(store, name, version, asked) is not None:
        return False
    state = canary_state(store, name, version)
    pointer = _pointer_with(store, name, version)
    assert pointer is not None
    since = state.began or datetime.fromisoformat(pointer.released_at)
    hours = asked.hours if state.began else asked.begin_hours
    over = since + timedelta(hours=hours) + SLACK
    return state.outcome in ("due", "under_way") and now < over


def _pointer_with(store: Store, name: str, version: str) -> ReleasePointer | None:
    """Return the pointer that a version was released to; the model's own if it never was."""
    staging = read_release(store, name, "staging")
    if staging is not None and version in {move.version for move in staging.history}:
        return staging
    return current_release(store, name)


def _left(store: Store, pointer: ReleasePointer, version: str) -> CanaryState:
    """Return the state of a version that is not served any more, though nothing was decided."""
    name, lines = pointer.name, read_log(store, pointer.name, pointer.version).lines()
    last = next((line.event for line in reversed(lines) if line.moves), None)
    how = f"{pointer.version} was released over it"
    if isinstance(last, RolledBack):
        by = last.by or "somebody"
        how = f"{by} rolled back to {pointer.version}: {last.reason}"
    return CanaryState("left", f"the canary of {name} {version} was not decided: {how}")
