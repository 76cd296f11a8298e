"""Pointer, logs and the statement of lineage against each other."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tuneline.artifacts.governance import LogEnd, PointerMove, ReleasePointer
from tuneline.artifacts.release_log import (
    Line,
    Log,
    Released,
    RolledBack,
    log_key,
    read_line,
    read_log,
)
from tuneline.artifacts.releases import (
    LINEAGE_EVIDENCE,
    LINEAGE_STATEMENTS,
    MANIFEST_FILE,
    POINTERS,
    manifest_key,
    model_prefix,
    pointer_key,
)
from tuneline.errors import TunelineError, UserError
from tuneline.governance.release.pointer import read_pointer
from tuneline.governance.release.signature import envelope_fault
from tuneline.store import CorruptObject, Store

# Small objects that are read from a server at once.
_AT_ONCE = 16
# What is wrong with a release. A store that can't be read now says nothing of it.
DAMAGE = (CorruptObject, UserError)


@dataclass
class _Logs:
    """What the logs of the versions hold."""

    lines: dict[str, list[Line]] = field(default_factory=dict)
    manifests: dict[str, str] = field(default_factory=dict)  # hash by version, where it is there
    differences: list[str] = field(default_factory=list)


def pointer_differences(store: Store, name: str, version: str, *, whole: bool) -> list[str]:
    """Compare the pointers of a model with its logs.

    The log of `version` and those of the released ones have to be there; `whole` compares those of
    all other versions too. Of a version whose folder was deleted as a whole nothing is left to
    compare.
    """
    try:
        read = (read_pointer(store, name, which).pointer for which in POINTERS)
        pointers = [pointer for pointer in read if pointer is not None]
    except DAMAGE as error:
        return [str(error)]
    wanted = {version}
    if whole:
        parts = (key.split("/") for key in store.keys(f"models/{name}"))
        wanted |= {part[2] for part in parts if len(part) > 3}
    if not pointers:
        uri = store.uri_of(pointer_key(name))
        logs = sorted(v for v in wanted if store.exists(log_key(name, v)))
        return [
            f"{store.uri_of(log_key(name, v))} is there, but {uri} is missing: restore it"
            for v in logs
        ]
    differences = []
    for pointer in pointers:
        # Each version is released to one pointer; what neither knows is compared with both.
        others = {v for other in pointers if other is not pointer for v in other.heads}
        differences += _of_pointer(store, pointer, wanted - others | {pointer.version})
    return differences


def _of_pointer(store: Store, pointer: ReleasePointer, versions: Collection[str]) -> list[str]:
    uri = store.uri_of(pointer_key(pointer.name, pointer.pointer))
    found = _read(store, pointer, versions, uri)
    return [
        *found.differences,
        *(f"{uri}: {fault}" for fault in _of_moves(pointer, found.lines)),
        *(f"{uri}: {fault}" for fault in _of_fields(store, pointer, found)),
    ]


def _read(store: Store, pointer: ReleasePointer, versions: Collection[str], uri: str) -> _Logs:
    """Read logs and manifests, and compare each log with its end in the pointer."""

    def read(version: str) -> tuple[Log | TunelineError, str | None]:
        try:
            log: Log | TunelineError = read_log(store, pointer.name, version)
        except DAMAGE as error:
            log = error
        try:
            return log, store.rehash(manifest_key(pointer.name, version)).sha256
        except DAMAGE:
            # What is wrong with a manifest is said when its version is verified.
            return log, None

    found = _Logs()
    ordered = sorted(versions)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for version, (log, manifest) in zip(ordered, pool.map(read, ordered), strict=True):
            if manifest is not None:
                found.manifests[version] = manifest
            if isinstance(log, TunelineError):
                found.differences.append(str(log))
                continue
            found.differences += _of_end(log, pointer.heads.get(version), uri)
            if log.stored is None:
                continue
            try:
                found.lines[version] = log.lines()
            except TunelineError as error:
                found.differences.append(str(error))
                continue
            found.differences += _of_chain(log, found.lines[version], version, manifest)
    return found


def _of_chain(log: Log, lines: list[Line], version: str, manifest: str | None) -> Iterator[str]:
    """Follow the chain of a log from the manifest on; the first break is named."""
    previous = manifest
    for number, line in enumerate(lines, 1):
        if previous is not None and line.previous_sha256 != previous:
            yield f"{log.uri}, line {number} is not chained to what came before it"
            return
        if line.version != version:
            yield f"{log.uri}, line {number} is of the version {line.version}"
        previous = line.sha256


def _of_end(log: Log, end: LogEnd | None, uri: str) -> Iterator[str]:
    """Compare the end of a log with the one that the pointer records."""
    if log.ends_at(end):
        return
    there, recorded = len(log.texts), end.lines if end else 0
    if log.stored is None:
        yield f"{log.uri} is missing, {uri} records {recorded} lines of it"
    elif there < recorded:
        yield f"{log.uri} has {there} lines, {uri} records {recorded}: its end was cut off"
    elif there > recorded:
        yield (
            f"{log.uri} has {there} lines, {uri} records {recorded}: lines were added, or the "
            "pointer was set back"
        )
    else:
        yield f"{log.uri}, line {there} is not the last line that {uri} records"


def _of_moves(pointer: ReleasePointer, lines: dict[str, list[Line]]) -> Iterator[str]:
    """Compare the history of the pointer with the lines that moved it, both ways."""
    if not pointer.history:
        yield "it names no history of its moves"
    moved = {line.sha256: line for log in lines.values() for line in log if line.moves}
    before: PointerMove | None = None
    for number, move in enumerate(pointer.history, 1):
        if move.version in lines:
            line = moved.pop(move.sha256, None)
            if line is None:
                yield f"move {number}, to {move.version}, is not in the release log of it"
            elif fault := _of_move(line, move, before):
                yield f"move {number}, to {move.version}: {fault}"
        before = move
    for line in moved.values():
        yield f"it lacks the move to {line.version} at {line.at}, which the release log has"


def _of_move(line: Line, move: PointerMove, before: PointerMove | None) -> str | None:
    """Return how a move in the pointer differs from its line, None if it does not."""
    event = line.event
    assert isinstance(event, Released | RolledBack)
    stated = (move.version, move.event, move.at)
    if stated != (line.version, event.event, line.at):
        return f"the release log says {event.event} at {line.at}, to {line.version}"
    earlier = (before.version, before.sha256) if before else (None, None)
    if earlier != (event.previous_version, event.follows):
        return f"the release log says that it came after {event.previous_version or 'no release'}"
    return None


def _of_fields(store: Store, pointer: ReleasePointer, found: _Logs) -> Iterator[str]:
    """Compare the fields that say what is released with the history, the log and the manifest."""
    key = manifest_key(pointer.name, pointer.version)
    events = (line.event for line in found.lines.get(pointer.version, []))
    # The manifest lies here, or where it was released.
    roots = {e.run.rpartition("/runs/")[0] for e in events if isinstance(e, Released)}
    agrees = {
        "manifest": pointer.manifest in {f"{root}/{key}" for root in (store.uri, *roots)},
        "manifest_sha256": found.manifests.get(pointer.version) == pointer.manifest_sha256,
        "lines": _last_lines_agree(pointer),
    }
    if pointer.history:
        last = pointer.history[-1]
        before = pointer.history[-2].version if len(pointer.history) > 1 else None
        agrees |= {
            "version": pointer.version == last.version,
            "release_sha256": pointer.release_sha256 == last.sha256,
            "released_at": pointer.released_at == last.at,
            "previous_version": pointer.previous_version == before,
        }
    return (f"its {name} is not that of the last release" for name in agrees if not agrees[name])


def _last_lines_agree(pointer: ReleasePointer) -> bool:
    """Compare the lines that were logged last with the end of their log."""
    try:
        lines = [read_line(text) for text in pointer.lines]
    except ValueError:
        return False
    if not lines:
        return False
    end = pointer.heads.get(lines[-1].version)
    chained = all(after.previous_sha256 == line.sha256 for line, after in pairwise(lines))
    return chained and end is not None and end.sha256 == lines[-1].sha256


_SIGNED = LINEAGE_STATEMENTS[1]


def lineage_differences(
    store: Store, name: str, version: str, manifest_sha256: str, public_key: Path | None
) -> tuple[list[str], list[str]]:
    """Compare the statement of `lineage` of a version.

    Returns differences, and what could not be compared.
    """
    prefix = model_prefix(name, version)
    names = (*LINEAGE_STATEMENTS, LINEAGE_EVIDENCE)
    there = [file for file in names if store.exists(f"{prefix}/{file}")]
    uris = [store.uri_of(f"{prefix}/{file}") for file in there]
    released, stated = _stated(store, name, version)
    if stated is None:
        return _unstated(store, name, version, uris, released=released, public_key=public_key)
    there = [file for file in there if file != LINEAGE_EVIDENCE]
    if not there:
        return [f"{store.uri_of(f'{prefix}/{LINEAGE_STATEMENTS[0]}')} is missing"], []
    if there[1:]:
        return [f"{uris[0]} is a file too many: {uris[1]} is there as well"], []
    try:
        raw = store.get_bytes(f"{prefix}/{there[0]}", sha256=stated)
    except DAMAGE as error:
        return [f"{error}; the release log names its hash"], []
    found = [f"{uris[0]} {fault}" for fault in _faults(raw, store, prefix, manifest_sha256)]
    if public_key is not None:
        wrong = envelope_fault(raw, public_key) if there[0] == _SIGNED else "it has no envelope"
        found += [f"{uris[0]} is not signed by {public_key}: {wrong}"] if wrong else []
    return found, []


def _unstated(
    store: Store,
    name: str,
    version: str,
    uris: Sequence[str],
    *,
    released: bool,
    public_key: Path | None,
) -> tuple[list[str], list[str]]:
    """Judge the files about `lineage` of a version whose log states no hash of them."""
    fault = "the release log does not name it"
    if not released:
        return [], [f"{uri}: {fault}, since the version is not released" for uri in uris]
    found = [f"{uri} is a file too many: {fault}" for uri in uris]
    if public_key is not None:
        found.append(
            f"{store.uri_of(log_key(name, version))}: {version} was released without a statement "
            "of lineage, as versions of Tuneline before there were any did, and as whoever may "
            "write to the store can; release it again by a run that signs"
        )
    return found, []


def _stated(store: Store, name: str, version: str) -> tuple[bool, str | None]:
    """Return whether the log says that the version was released, and the hash that it states."""
    try:
        lines = read_log(store, name, version).lines()
    except DAMAGE:
        # The comparison with the pointer names what is wrong with the log.
        return False, None
    found = [line.event.lineage_sha256 for line in lines if isinstance(line.event, Released)]
    return bool(found), next(iter(found), None)


def _faults(raw: bytes, store: Store, prefix: str, manifest_sha256: str) -> Iterator[str]:
    try:
        statement = json.loads(raw)
        if "payload" in statement:
            statement = json.loads(base64.b64decode(statement["payload"]))
        subjects = _hashes(statement["subject"])
        read = _hashes(statement["predicate"]["configuration"])
    except (ValueError, KeyError, TypeError):
        yield "is not a statement"
        return
    if subjects.get(MANIFEST_FILE) != manifest_sha256:
        yield "is about another manifest"
    try:
        evidence = store.rehash(f"{prefix}/{LINEAGE_EVIDENCE}").sha256
    except DAMAGE as error:
        yield f"rests on evidence that is not there: {error}"
        return
    if read.get(LINEAGE_EVIDENCE) != evidence:
        yield f"rests on other evidence than {LINEAGE_EVIDENCE} of the release"


def _hashes(descriptors: list[dict[str, Any]]) -> dict[str, str]:
    return {one["name"]: one["digest"]["sha256"] for one in descriptors}
