"""Move the release pointer back to an earlier version: by hand, from the UI or by a canary."""

from __future__ import annotations

from tuneline.artifacts.governance import PointerName, ReleasePointer
from tuneline.artifacts.release_log import RolledBack, Withdrawn, read_log
from tuneline.artifacts.releases import find_version, previous_version
from tuneline.errors import UserError
from tuneline.governance.release.pointer import complete, last_move, read_pointer, record
from tuneline.governance.release.registry import move_alias
from tuneline.governance.release.verify import served_differences
from tuneline.store import Changed, Store

NO_REASON = "no reason was given"


def roll_back(
    store: Store,
    name: str,
    version: str | None,
    *,
    by: str | None,
    reason: str,
    which: PointerName = "production",
) -> ReleasePointer:
    """Release an earlier version of a model again.

    None takes the version that was released before. Nothing has moved if a UserError is raised.
    """
    pointed = read_pointer(store, name, which)
    if pointed.pointer is None:
        none = f"{store.uri} holds no release of {name} in {which}"
        raise UserError(f"{none}, so there is nothing to roll back")
    complete(pointed)
    target = version or previous_version(pointed.pointer)
    if target is None:
        named = f"{name} {pointed.pointer.version}"
        raise UserError(f"{named} has no release before it to roll back to")
    _check_history(pointed.pointer, target)
    manifest = _check_log(store, name, target)
    differing = served_differences(store, name, target)
    if differing:
        raise UserError(
            f"{name} stays at {pointed.pointer.version}: {target} can't be served again: "
            + "; ".join(differing)
        )
    previous, follows = last_move(pointed)
    event = RolledBack(previous_version=previous, follows=follows, by=by, reason=reason)
    try:
        return record(pointed, target, manifest, [event])
    except Changed:
        raise UserError(
            f"{name} is not rolled back: another version was released meanwhile; look at "
            f"`tuneline lineage {name}` and try again"
        ) from None


def _check_history(pointer: ReleasePointer, target: str) -> None:
    if target == pointer.version:
        raise UserError(f"{pointer.name} {target} is released already")
    known = list(dict.fromkeys(move.version for move in pointer.history))
    if target not in known:
        raise UserError(
            f"{pointer.name} {target} was never released, so nothing says that it may be served; "
            f"released were {', '.join(known)}"
        )


def _check_log(store: Store, name: str, target: str) -> str:
    """Return the hash of the manifest that a version was released with."""
    lines = read_log(store, name, target).lines()
    if not lines:
        raise UserError(f"{name} {target} has no release log; restore it")
    for line in lines:
        if isinstance(line.event, Withdrawn):
            raise UserError(
                f"{name} {target} was withdrawn at {line.at} by "
                f"{line.event.by or 'an unknown person'}: {line.event.reason}"
            )
    return lines[0].previous_sha256


def announce(store: Store, pointer: ReleasePointer) -> str:
    """Tell MLflow's registry of a rollback, and return one sentence about it for a person."""
    found = find_version(store, pointer.name, pointer.version)
    made = f", made at {found.manifest.created_at}" if found and found.manifest.created_at else ""
    return (
        f"{pointer.name} {pointer.version} is released again{made}; "
        f"{pointer.previous_version} no longer is{move_alias(pointer)}"
    )
