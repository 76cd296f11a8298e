"""Releases as promotion leaves them."""

import json
from collections.abc import Mapping
from typing import Any

from tuneline.artifacts.governance import Manifest, ReleasePointer
from tuneline.artifacts.releases import model_prefix
from tuneline.governance.release.manifest import write_manifest, write_release
from tuneline.run import Run


def point(store: Any, name: str, version: str, at: str = "2026-10-02T00:00:00Z") -> None:
    """Point a model's name at a version."""
    pointer = {"name": name, "version": version, "released_at": at}
    store.put_bytes(f"models/{name}/production.json", json.dumps(pointer).encode())


def release(store: Any, files: Mapping[str, bytes]) -> None:
    """Release version 1 of the model a, whose manifest names these files."""
    stated = [
        {"name": name, "sha256": store.put_bytes(f"models/a/1/{name}", content).sha256}
        for name, content in files.items()
    ]
    store.put_bytes("models/a/1/manifest.json", json.dumps({"files": stated}).encode())
    point(store, "a", "1")


def bare_release(run: Run, name: str | None = None, at: str = "2026-03-01T00:00:00Z") -> None:
    """Release the version of a run, without any file."""
    name = name or run.config.name
    prefix = model_prefix(name, run.run_id)
    manifest = Manifest(name=name, version=run.run_id, run={"uri": run.uri}, files=[])
    digest = write_manifest(run.store, prefix, manifest)
    pointer = ReleasePointer(
        name=name,
        version=run.run_id,
        manifest=run.store.uri_of(f"{prefix}/manifest.json"),
        manifest_sha256=digest,
        release_sha256=digest,
        released_at=at,
    )
    write_release(run.store, pointer)
