"""How the canary of a version stands, as the store tells it: its release log, and the pointer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from tuneline.artifacts.governance import ReleasePointer
from tuneline.artifacts.release_log import Canary, Released, RolledBack, read_log, withdrawal
from tuneline.artifacts.releases import find_version, previous_version, read_release
from tuneline.config.governance import ReleaseCanaryConfig
from tuneline.errors import UserError
from tuneline.serving.following.chain import settings_of
from tuneline.store import Store

Outcome = Literal["due", "under_way", "promoted", "withdrawn", "left"]

# The follower withdraws an undecided canary at its end, within seconds if it is at work.
SLACK = timedelta(minutes=30)


@dataclass(frozen=True)
class CanaryState:
    """How a canary stands.

    Attributes:
        outcome: `due` before a follower has begun it, `left` if the pointer was moved to another
            version before it was decided.
        told: one sentence for a person.
        began: when it began, None if it has not.
    """

    outcome: Outcome
    told: str
    began: datetime | None = None


def canary_state(store: Store, name: str, version: str) -> CanaryState:
    """Return how the canary of a version that was released stands.

    Raises:
        UserError: if the version was never released.
        RetryableError: if the store can't be read now.
    """
    pointer = read_release(store, name)
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
    """Return why a version that was just released has no canary, None if one is to come.

    Args:
        store: the store.
        name: the model.
        version: the version.
        asked: what its run asks for.
    """
    if not asked.share:
        return "the run asks for no canary (governance.canary.share is 0)"
    pointer = read_release(store, name)
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
    pointer = read_release(store, name)
    assert pointer is not None
    since = state.began or datetime.fromisoformat(pointer.released_at)
    hours = asked.hours if state.began else asked.begin_hours
    over = since + timedelta(hours=hours) + SLACK
    return state.outcome in ("due", "under_way") and now < over


def _left(store: Store, pointer: ReleasePointer, version: str) -> CanaryState:
    """Return the state of a version that is not served any more, though nothing was decided."""
    name, lines = pointer.name, read_log(store, pointer.name, pointer.version).lines()
    last = next((line.event for line in reversed(lines) if line.moves), None)
    how = f"{pointer.version} was released over it"
    if isinstance(last, RolledBack):
        by = last.by or "somebody"
        how = f"{by} rolled back to {pointer.version}: {last.reason}"
    return CanaryState("left", f"the canary of {name} {version} was not decided: {how}")
