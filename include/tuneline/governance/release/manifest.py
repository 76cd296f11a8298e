"""The manifest of a model version and the files beside it, each written once.

`<store>/models/<name>/<version>/manifest.json` states every file by hash. What happens to the
version afterwards goes into `release.jsonl` beside it, see `tuneline.artifacts.release_log`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tuneline.artifacts.governance import Manifest, ManifestFile
from tuneline.errors import UserError
from tuneline.run import now
from tuneline.step_context import StepContext
from tuneline.store import AlreadyThere, CorruptObject, Store, sha256_file


def write_manifest(store: Store, prefix: str, manifest: Manifest) -> str:
    """Write a manifest once.

    A retried step may write the same manifest again, except for its time; any other content
    is refused.

    Returns:
        Hex SHA-256 of the manifest's bytes.

    Raises:
        UserError: if the version exists with other content.
    """
    # The files that it states come first, also on the disk.
    store.flush()
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
        try:
            same = store.rehash(key).sha256 == sha256
        except CorruptObject:
            same = False
        if not same:
            raise UserError(
                f"{store.uri_of(key)} exists with other bytes and is written once; "
                "start a new run for a new version"
            ) from None


def store_files(ctx: StepContext, prefix: str, files: dict[str, Path]) -> list[ManifestFile]:
    """Write the files of the model version, each once; return their hashes in order of name."""
    stated = []
    for name, path in ctx.progress(sorted(files.items()), len(files), "storing the model's files"):
        digest = sha256_file(path)
        put_once(ctx.run.store, f"{prefix}/{name}", path, digest)
        stated.append(ManifestFile(name=name, sha256=digest, bytes=path.stat().st_size))
    return stated
