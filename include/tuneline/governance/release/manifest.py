"""The manifest of a model version, its release log, and the release pointer.

`<store>/models/<name>/<version>/manifest.json` states every file by hash and is written once.
What happens to the version afterwards goes into `release.jsonl` beside it. Each line is chained
to the one before and the first line to the manifest, so that rewriting either shows.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tuneline.artifacts.governance import Manifest, ReleasePointer
from tuneline.artifacts.releases import Release, pointer_key
from tuneline.errors import TunelineError, UserError
from tuneline.run import now
from tuneline.store import AlreadyThere, CorruptObject, NotThere, Store, open_store

RELEASE_SCHEMA = "tuneline/release/1"
# What every line of the release log has beside its event.
_LINE_FIELDS = ("schema", "at", "previous_sha256")


def write_manifest(store: Store, prefix: str, manifest: Manifest) -> str:
    """Write a manifest once.

    A retried step may write the same manifest again, except for its time; any other content
    is refused.

    Returns:
        Hex SHA-256 of the manifest's bytes.

    Raises:
        UserError: if the version exists with other content.
    """
    key = f"{prefix}/manifest.json"
    document = {**manifest.model_dump(mode="json", by_alias=True), "created_at": now()}
    raw = json.dumps(document, indent=1, ensure_ascii=False).encode()
    try:
        return store.put_bytes(key, raw, once=True).sha256
    except AlreadyThere:
        stored = store.get_bytes(key)
        if {**json.loads(stored), "created_at": None} != {**document, "created_at": None}:
            raise UserError(
                f"{store.uri_of(key)} exists with other content and is written once; "
                "start a new run for a new version"
            ) from None
        return hashlib.sha256(stored).hexdigest()


def put_once(store: Store, key: str, path: Path, sha256: str) -> None:
    """Write a model's file once; the same bytes may be written again.

    Raises:
        UserError: if the file exists with other bytes.
    """
    try:
        store.put_file(key, path, once=True)
    except AlreadyThere:
        with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
            try:
                store.get_file(key, Path(scratch) / "stored", sha256=sha256)
            except CorruptObject:
                raise UserError(
                    f"{store.uri_of(key)} exists with other bytes and is written once; "
                    "start a new run for a new version"
                ) from None


def verify(manifest_uri: str) -> list[str]:
    """Recompute every hash that a manifest states, those of a shared base in the store included.

    Args:
        manifest_uri: address of a `manifest.json`.

    Returns:
        One sentence for each difference; empty when everything agrees.

    Raises:
        UserError: if there is no manifest at that address.
    """
    folder, _, name = manifest_uri.rpartition("/")
    if name != "manifest.json" or "/models/" not in folder:
        raise UserError(f"{manifest_uri!r} is not the URI of a manifest.json below /models/")
    root, _, version = folder.rpartition("/models/")
    store, prefix = open_store(root), f"models/{version}"
    try:
        raw = store.get_bytes(f"{prefix}/manifest.json")
    except CorruptObject as error:
        return [str(error)]
    manifest = Manifest.model_validate_json(raw)
    differences = (
        _difference(store, f"{prefix}/{entry.name}", entry.sha256, entry.bytes)
        for entry in manifest.files
    )
    return [
        *filter(None, differences),
        *_base_differences(store, manifest),
        *_log_differences(store, prefix, hashlib.sha256(raw).hexdigest()),
    ]


def _base_differences(store: Store, manifest: Manifest) -> Iterator[str]:
    """Compare the base that an adapter is served on, if it lies in the store."""
    apart = Release(store, manifest).apart
    if apart is None or apart.base.key is None:
        return
    for name, sha256 in apart.base.files.items():
        if found := _difference(store, f"{apart.base.key}/{name}", sha256):
            yield found


def _difference(store: Store, key: str, sha256: str, size: int | None = None) -> str | None:
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        try:
            ref = store.get_file(key, Path(scratch) / "file", sha256=sha256)
        except NotThere:
            return f"{store.uri_of(key)} is missing"
        except TunelineError as error:
            return str(error)
    if size not in (None, ref.bytes):
        return f"{store.uri_of(key)} has {ref.bytes} bytes, the manifest says {size}"
    return None


def append_release(
    store: Store, prefix: str, manifest_sha256: str, event: Mapping[str, Any]
) -> str:
    """Append an event to the release log of a model version.

    The event that already is the last line is not appended again, so that a retry after a
    crash logs it once.

    Args:
        store: the store of the model.
        prefix: the version's folder.
        manifest_sha256: the hash that the first line is chained to.
        event: the event (`event`, `by`, …).

    Returns:
        Hash of the last line, which the next one will be chained to.
    """
    lines = _log_lines(store, prefix)
    if lines:
        last = json.loads(lines[-1])
        if {name: last[name] for name in last if name not in _LINE_FIELDS} == dict(event):
            return _line_hash(lines[-1])
    previous = _line_hash(lines[-1]) if lines else manifest_sha256
    line = json.dumps(
        {"schema": RELEASE_SCHEMA, "at": now(), "previous_sha256": previous, **event},
        ensure_ascii=False,
    )
    store.put_bytes(f"{prefix}/release.jsonl", ("\n".join([*lines, line]) + "\n").encode())
    return _line_hash(line)


def _log_differences(store: Store, prefix: str, manifest_sha256: str) -> list[str]:
    try:
        lines = _log_lines(store, prefix)
    except CorruptObject as error:
        return [str(error)]
    previous = manifest_sha256
    for number, line in enumerate(lines, 1):
        if json.loads(line)["previous_sha256"] != previous:
            log = store.uri_of(f"{prefix}/release.jsonl")
            return [f"{log}, line {number} is not chained to what came before it"]
        previous = _line_hash(line)
    return []


def _log_lines(store: Store, prefix: str) -> list[str]:
    try:
        return store.get_bytes(f"{prefix}/release.jsonl").decode().splitlines()
    except NotThere:
        return []


def _line_hash(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()


def write_release(store: Store, pointer: ReleasePointer) -> None:
    """Point a model's release at the pointer's version."""
    document = pointer.model_dump(mode="json", by_alias=True)
    store.put_bytes(pointer_key(pointer.name), json.dumps(document, indent=1).encode())
