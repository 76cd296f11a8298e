"""Releases as promotion leaves them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneline.artifacts.deployment import AdapterForm, Apart, BaseForm
from tuneline.artifacts.governance import Manifest, ReleasePointer
from tuneline.artifacts.releases import ADAPTER_FILE, MODEL_FILE, model_prefix
from tuneline.bases.served import keep_form
from tuneline.governance.release.manifest import write_manifest, write_release
from tuneline.run import Run
from tuneline.store import sha256_file


def point(store: Any, name: str, version: str, at: str = "2026-10-02T00:00:00Z") -> None:
    """Point a model's name at a version."""
    pointer = {"name": name, "version": version, "released_at": at}
    store.put_bytes(f"models/{name}/production.json", json.dumps(pointer).encode())


def release(
    store: Any,
    files: Mapping[str, bytes],
    *,
    name: str = "a",
    engine: Mapping[str, Any] | None = None,
) -> None:
    """Release version 1 of a model, whose manifest names these files.

    Args:
        store: the store.
        files: content by name.
        name: the model's name.
        engine: the identity of its engine; by default nothing is stated, as of llama.cpp.
    """
    prefix = model_prefix(name, "1")
    stated = [
        {"name": file, "sha256": store.put_bytes(f"{prefix}/{file}", content).sha256}
        | {"bytes": len(content)}
        for file, content in files.items()
    ]
    manifest = {"name": name, "version": "1", "engine": engine, "files": stated}
    digest = write_manifest(store, prefix, Manifest.model_validate(manifest))
    pointer = ReleasePointer(
        name=name,
        version="1",
        manifest=store.uri_of(f"{prefix}/manifest.json"),
        manifest_sha256=digest,
        release_sha256=digest,
        released_at="2026-10-02T00:00:00Z",
    )
    write_release(store, pointer)


def release_apart(
    store: Any, base: Path, adapter: Path, *, name: str = "a", uri: str = "file:///tiny"
) -> None:
    """Release version 1 of an adapter that llama.cpp serves beside a base.

    Args:
        store: the store.
        base: the base as GGUF.
        adapter: the adapter as GGUF.
        name: the model's name.
        uri: address of the base model.
    """
    sha256 = sha256_file(base)
    files = {MODEL_FILE: sha256}
    form = BaseForm(
        uri=uri, digest="d" * 64, variant="f16", made_by="a test", sha256=sha256, files=files
    )
    form = keep_form(store, base, files, form, print)
    ours = sha256_file(adapter)
    apart = Apart(base=form, adapter=AdapterForm(sha256=ours, files={ADAPTER_FILE: ours}))
    engine = {
        "engine": "llama_cpp",
        "limits": {"max_batch_size": 4, "max_total_tokens": 256},
        "apart": apart.model_dump(),
    }
    release(store, {ADAPTER_FILE: adapter.read_bytes()}, name=name, engine=engine)


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
