"""The manifest of a model: every file hashed, tied to data, code and parameters.

`<store>/models/<name>/<version>/manifest.json` is written once. What happens to the
model afterwards (approval, release, canary) goes into `release.jsonl` beside it, each
line chained to the one before and the first to the manifest, so that neither can be
rewritten unseen.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneline.errors import TunelineError, UserError
from tuneline.run import now
from tuneline.store import AlreadyThere, CorruptObject, NotThere, Store, open_store

SCHEMA = "tuneline/manifest/1"
RELEASE_SCHEMA = "tuneline/release/1"


def model_prefix(name: str, version: str) -> str:
    """The key of a model version's folder."""
    return f"models/{name}/{version}"


def write_manifest(store: Store, prefix: str, body: Mapping[str, Any]) -> str:
    """Write a manifest once.

    A retried step may write the same manifest again, its time aside; another one is refused.

    Returns:
        Hex SHA-256 of the manifest's bytes.

    Raises:
        UserError: the version exists with other content.
    """
    key = f"{prefix}/manifest.json"
    document = {"schema": SCHEMA, "created_at": now(), **body}
    raw = json.dumps(document, indent=1, ensure_ascii=False).encode()
    try:
        return store.put_bytes(key, raw, once=True).sha256
    except AlreadyThere:
        there = store.get_bytes(key)
        if {**json.loads(there), "created_at": None} != {**document, "created_at": None}:
            raise UserError(
                f"{store.uri_of(key)} exists with other content and is written once; "
                "start a new run for a new version"
            ) from None
        return hashlib.sha256(there).hexdigest()


def put_once(store: Store, key: str, path: Path, sha256: str) -> None:
    """Write a model's file once; the same bytes may be written again.

    Raises:
        UserError: the file exists with other bytes.
    """
    try:
        store.put_file(key, path, once=True)
    except AlreadyThere:
        with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
            try:
                store.get_file(key, Path(scratch) / "there", sha256=sha256)
            except CorruptObject:
                raise UserError(
                    f"{store.uri_of(key)} exists with other bytes and is written once; "
                    "start a new run for a new version"
                ) from None


def verify(manifest_uri: str) -> list[str]:
    """Recompute every hash that a manifest states.

    Args:
        manifest_uri: URI of a `manifest.json`.

    Returns:
        One sentence for each difference; empty when everything agrees.

    Raises:
        UserError: there is no manifest at that URI.
    """
    folder, _, name = manifest_uri.rpartition("/")
    if name != "manifest.json" or "/models/" not in folder:
        raise UserError(f"{manifest_uri!r} is not the URI of a manifest.json below /models/")
    root, _, rest = folder.rpartition("/models/")
    store, prefix = open_store(root), f"models/{rest}"
    try:
        raw = store.get_bytes(f"{prefix}/manifest.json")
    except CorruptObject as error:
        return [str(error)]
    manifest = json.loads(raw)
    differences = []
    for entry in manifest["files"]:
        key = f"{prefix}/{entry['name']}"
        difference = _difference(store, key, entry["sha256"], entry["bytes"])
        if difference:
            differences.append(difference)
    differences += _release_differences(store, prefix, hashlib.sha256(raw).hexdigest())
    return differences


def _difference(store: Store, key: str, sha256: str, size: int) -> str | None:
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        try:
            ref = store.get_file(key, Path(scratch) / "file", sha256=sha256)
        except NotThere:
            return f"{store.uri_of(key)} is missing"
        except TunelineError as error:
            return str(error)
    if ref.bytes != size:
        return f"{store.uri_of(key)} has {ref.bytes} bytes, the manifest says {size}"
    return None


def append_release(
    store: Store, prefix: str, manifest_sha256: str, event: Mapping[str, Any]
) -> str:
    """Append an event to a model's release log.

    Args:
        store: the store of the model.
        prefix: the model version's folder.
        manifest_sha256: what the first line is chained to.
        event: what happened (`event`, `by`, …).

    Returns:
        Hash of the new line, which the next one is chained to.
    """
    key = f"{prefix}/release.jsonl"
    try:
        lines = store.get_bytes(key).decode().splitlines()
    except NotThere:
        lines = []
    previous = _line_hash(lines[-1]) if lines else manifest_sha256
    line = json.dumps(
        {"schema": RELEASE_SCHEMA, "at": now(), "previous_sha256": previous, **event},
        ensure_ascii=False,
    )
    store.put_bytes(key, ("\n".join([*lines, line]) + "\n").encode())
    return _line_hash(line)


def _release_differences(store: Store, prefix: str, manifest_sha256: str) -> list[str]:
    key = f"{prefix}/release.jsonl"
    try:
        lines = store.get_bytes(key).decode().splitlines()
    except NotThere:
        return []
    except CorruptObject as error:
        return [str(error)]
    previous = manifest_sha256
    for number, line in enumerate(lines, 1):
        if json.loads(line)["previous_sha256"] != previous:
            return [f"{store.uri_of(key)}, line {number} is not chained to what came before it"]
        previous = _line_hash(line)
    return []


def _line_hash(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()


def read_release(store: Store, name: str) -> dict[str, Any] | None:
    """The pointer to a model's released version, None when nothing was released."""
    try:
        document: dict[str, Any] = json.loads(store.get_bytes(f"models/{name}/production.json"))
    except NotThere:
        return None
    return document
