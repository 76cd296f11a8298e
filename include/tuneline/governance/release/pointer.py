"""The release pointer of a model, moved by conditional writes, and the logs that it records.

An event is recorded by two writes. The first replaces the pointer, on the condition that nobody
else has since it was read: it holds the new lines in full and the new end of the version's log. The
second appends the lines to `release.jsonl`. Only the first one decides, so of two promotions at
once one wins and the other leaves nothing behind, and a promotion that dies between the two is
completed by whoever records next.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from tuneline.artifacts.governance import LogEnd, PointerMove, PointerName, ReleasePointer
from tuneline.artifacts.release_log import (
    Event,
    Line,
    Log,
    chain,
    log_bytes,
    log_key,
    read_line,
    read_log,
)
from tuneline.artifacts.releases import manifest_key, pointer_key
from tuneline.errors import RetryableError, UserError
from tuneline.run import now
from tuneline.store import Changed, CorruptObject, NotThere, Store

# Another process may complete the same log between the reading and the writing, more than once.
_TRIES = 5


@dataclass(frozen=True)
class Pointed:
    """A pointer of a model as it was read."""

    store: Store
    name: str
    pointer: ReleasePointer | None  # None if nothing was released to it
    tag: str | None  # the store's tag of its bytes
    which: PointerName = "production"

    @property
    def key(self) -> str:
        """The key of the pointer in the store."""
        return pointer_key(self.name, self.which)


def pointer_bytes(pointer: ReleasePointer) -> bytes:
    """Return the bytes of a pointer."""
    return json.dumps(pointer.model_dump(mode="json", by_alias=True), indent=1).encode()


def read_pointer(store: Store, name: str, which: PointerName = "production") -> Pointed:
    """Read a pointer of a model for a conditional write."""
    key = pointer_key(name, which)
    uri = store.uri_of(key)
    try:
        stored = store.read_tagged(key)
    except NotThere:
        return Pointed(store, name, None, None, which)
    try:
        pointer = ReleasePointer.model_validate_json(stored.data)
    except ValidationError as error:
        raise CorruptObject(f"{uri} is not a pointer: {error.errors()[0]['msg']}") from None
    ours = (pointer.name, pointer.pointer) == (name, which)
    if pointer_bytes(pointer) != stored.data or not ours:
        raise CorruptObject(f"{uri} is not in the form in which promote writes it; restore it")
    return Pointed(store, name, pointer, stored.tag, which)


def complete(pointed: Pointed) -> None:
    """Append the lines that the pointer holds to their log, if they are not there yet."""
    pointer = pointed.pointer
    if pointer is None or not pointer.lines:
        return
    store, name = pointed.store, pointed.name
    version = read_line(pointer.lines[0]).version
    end = pointer.heads[version]
    # Until no other writer interferes.
    for _ in range(_TRIES):
        log = read_log(store, name, version)
        if len(log.texts) >= end.lines and Log(log.uri, None, log.texts[: end.lines]).ends_at(end):
            return
        missing = pointer.lines[-(end.lines - len(log.texts)) :]
        whole = Log(log.uri, None, [*log.texts, *missing])
        chained = log.last_sha256 in (None, read_line(missing[0]).previous_sha256)
        if not chained or not whole.ends_at(end):
            raise _torn(pointed, log)
        try:
            tag = log.stored.tag if log.stored else None
            store.replace(log_key(name, version), log_bytes(whole.texts), tag)
        except Changed:
            continue
        return
    raise RetryableError(f"{store.uri_of(log_key(name, version))} is written by others; try again")


def _torn(pointed: Pointed, log: Log) -> CorruptObject:
    return CorruptObject(
        f"{log.uri} does not end where {pointed.store.uri_of(pointed.key)} says; "
        "`tuneline verify` names what differs"
    )


def record(
    pointed: Pointed, version: str, manifest_sha256: str, events: Sequence[Event]
) -> ReleasePointer:
    """Record events of one version, the last of which may move the pointer to it.

    The first line of the version's log is chained to `manifest_sha256`. `Changed` is raised, and
    nothing written, if another writer came first.
    """
    store, name = pointed.store, pointed.name
    complete(pointed)
    log = read_log(store, name, version)
    known = pointed.pointer.heads.get(version) if pointed.pointer else None
    if not log.ends_at(known):
        raise _torn(pointed, log)
    lines = chain(version, events, known.sha256 if known else manifest_sha256, now())
    pointer = _advance(pointed, version, manifest_sha256, lines, len(log.texts))
    # What a release consists of is on the disk before anything points to it.
    store.flush()
    store.replace(pointed.key, pointer_bytes(pointer), pointed.tag)
    complete(replace(pointed, pointer=pointer))
    return pointer


def last_move(pointed: Pointed) -> tuple[str | None, str | None]:
    """Return the released version and the hash of its move: what the next move carries."""
    pointer = pointed.pointer
    return (pointer.version, pointer.release_sha256) if pointer else (None, None)


def _advance(
    pointed: Pointed, version: str, manifest_sha256: str, lines: Sequence[Line], before: int
) -> ReleasePointer:
    """Return the pointer after new lines of a version's log."""
    last, old = lines[-1], pointed.pointer
    end = LogEnd(lines=before + len(lines), sha256=last.sha256)
    recorded = {
        "heads": {**(old.heads if old else {}), version: end},
        "lines": [line.text for line in lines],
    }
    if not last.moves:
        if old is None:
            raise UserError(
                f"{pointed.name} has no release yet, so nothing can be recorded of {version}; "
                "promote a version first"
            )
        return old.model_copy(update=recorded)
    move = PointerMove(version=version, event=last.event.event, at=last.at, sha256=last.sha256)
    return ReleasePointer(
        schema=f"tuneline/{pointed.which}/1",
        name=pointed.name,
        version=version,
        manifest=pointed.store.uri_of(manifest_key(pointed.name, version)),
        manifest_sha256=manifest_sha256,
        release_sha256=last.sha256,
        previous_version=old.version if old else None,
        released_at=last.at,
        history=[*(old.history if old else []), move],
        **recorded,
    )
