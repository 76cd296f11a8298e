"""Compare the statement of `lineage` with the release log, the manifest and its evidence.

The manifest can't name these files, since the verdict of `lineage` rests on it. The line of the
log that released the version carries the hash of the statement, the statement those of the
manifest and of the evidence. With the key of a signed release the signature is checked as well, so
that a log that was rewritten to fit does not help.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tuneline.artifacts.release_log import Released, log_key, read_log
from tuneline.artifacts.releases import (
    LINEAGE_EVIDENCE,
    LINEAGE_STATEMENTS,
    MANIFEST_FILE,
    model_prefix,
)
from tuneline.errors import TunelineError
from tuneline.governance.release.keyless import Identity
from tuneline.governance.release.signature import envelope_fault
from tuneline.store import Store

_SIGNED = LINEAGE_STATEMENTS[1]


def lineage_differences(
    store: Store, name: str, version: str, manifest_sha256: str, signer: Path | Identity | None
) -> tuple[list[str], list[str]]:
    """Compare the statement of `lineage` of a version.

    Args:
        store: the store.
        name: the model.
        version: its version.
        manifest_sha256: hash of the version's manifest.
        signer: who must have signed the release. A key signs the statement as well, an identity
            the files of the manifest alone.

    Returns:
        Differences, and what could not be compared; one sentence each.

    Raises:
        UserError: if the key can't be read, or the library is missing.
    """
    prefix = model_prefix(name, version)
    names = (*LINEAGE_STATEMENTS, LINEAGE_EVIDENCE)
    there = [file for file in names if store.exists(f"{prefix}/{file}")]
    uris = [store.uri_of(f"{prefix}/{file}") for file in there]
    released, stated = _stated(store, name, version)
    if stated is None:
        return _unstated(store, name, version, uris, released=released, signer=signer)
    there = [file for file in there if file != LINEAGE_EVIDENCE]
    if not there:
        return [f"{store.uri_of(f'{prefix}/{LINEAGE_STATEMENTS[0]}')} is missing"], []
    if there[1:]:
        return [f"{uris[0]} is a file too many: {uris[1]} is there as well"], []
    try:
        raw = store.get_bytes(f"{prefix}/{there[0]}", sha256=stated)
    except TunelineError as error:
        return [f"{error}; the release log names its hash"], []
    found = [f"{uris[0]} {fault}" for fault in _faults(raw, store, prefix, manifest_sha256)]
    unchecked = []
    if isinstance(signer, Path):
        wrong = envelope_fault(raw, signer) if there[0] == _SIGNED else "it has no envelope"
        found += [f"{uris[0]} is not signed by {signer}: {wrong}"] if wrong else []
    elif signer is not None:
        unchecked.append(f"{uris[0]} is not signed: an identity signs the files of the manifest")
    return found, unchecked


def _unstated(
    store: Store,
    name: str,
    version: str,
    uris: Sequence[str],
    *,
    released: bool,
    signer: Path | Identity | None,
) -> tuple[list[str], list[str]]:
    """Judge the files about `lineage` of a version whose log states no hash of them."""
    fault = "the release log does not name it"
    if not released:
        return [], [f"{uri}: {fault}, since the version is not released" for uri in uris]
    found = [f"{uri} is a file too many: {fault}" for uri in uris]
    if signer is not None:
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
    except TunelineError:
        # The comparison with the pointer names what is wrong with the log.
        return False, None
    found = [line.event.lineage_sha256 for line in lines if isinstance(line.event, Released)]
    return bool(found), next(iter(found), None)


def _faults(raw: bytes, store: Store, prefix: str, manifest_sha256: str) -> Iterator[str]:
    try:
        statement = _payload(json.loads(raw))
        subjects = _hashes(statement["subject"])
        read = _hashes(statement["predicate"]["configuration"])
    except (ValueError, KeyError, TypeError):
        yield "is not a statement"
        return
    if subjects.get(MANIFEST_FILE) != manifest_sha256:
        yield "is about another manifest"
    try:
        evidence = store.rehash(f"{prefix}/{LINEAGE_EVIDENCE}").sha256
    except TunelineError as error:
        yield f"rests on evidence that is not there: {error}"
        return
    if read.get(LINEAGE_EVIDENCE) != evidence:
        yield f"rests on other evidence than {LINEAGE_EVIDENCE} of the release"


def _payload(document: dict[str, Any]) -> dict[str, Any]:
    """Return a statement, taken out of its envelope if it lies in one."""
    payload = document.get("payload")
    found = document if payload is None else json.loads(base64.b64decode(payload))
    return dict(found)


def _hashes(descriptors: list[dict[str, Any]]) -> dict[str, str]:
    return {one["name"]: one["digest"]["sha256"] for one in descriptors}
