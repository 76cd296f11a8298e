"""Releases as promotion leaves them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tuneline.artifacts.deployment import AdapterForm, Apart, BaseForm
from tuneline.artifacts.governance import Manifest, PointerName, ReleasePointer
from tuneline.artifacts.release_log import Released, log_key, read_line
from tuneline.artifacts.releases import (
    ADAPTER_FILE,
    MODEL_FILE,
    Release,
    model_prefix,
    open_release,
    pointer_key,
    read_release,
)
from tuneline.bases import keep_form
from tuneline.governance.release.manifest import write_manifest
from tuneline.governance.release.pointer import last_move, read_pointer, record
from tuneline.run import Run
from tuneline.store import FileStore, sha256_file


def log_release(
    store: Any,
    name: str,
    version: str,
    sha256: str,
    at: str = "2026-10-02T00:00:00Z",
    which: PointerName = "production",
) -> ReleasePointer:
    """Log that a version with a manifest of this hash was released, and point to it."""
    pointed = read_pointer(store, name, which)
    previous, follows = last_move(pointed)
    run = store.uri_of(f"runs/{version}")
    event = Released(previous_version=previous, follows=follows, by="alice", run=run)
    with patch("tuneline.governance.release.pointer.now", lambda: at):
        return record(pointed, version, sha256, [event])


def backdate(store: FileStore, name: str, at: str, which: PointerName) -> None:
    """Write the first release of a model as if it had been made at another time."""
    pointer = read_pointer(store, name, which).pointer
    assert pointer is not None
    for key in (pointer_key(name, which), log_key(name, pointer.version)):
        (store.root / key).unlink()
    events = [read_line(text).event for text in pointer.lines]
    with patch("tuneline.governance.release.pointer.now", lambda: at):
        record(read_pointer(store, name, which), pointer.version, pointer.manifest_sha256, events)


def opened(store: Any, name: str = "a") -> Release:
    """Return the released version of a model."""
    pointer = read_release(store, name)
    assert pointer is not None
    return open_release(store, pointer)


def release(
    store: Any,
    files: Mapping[str, bytes],
    *,
    name: str = "a",
    version: str = "1",
    engine: Mapping[str, Any] | None = None,
    **fields: Any,
) -> None:
    """Release a version of a model, whose manifest names these files and has more fields."""
    prefix = model_prefix(name, version)
    stated = [
        {"name": file, "sha256": store.put_bytes(f"{prefix}/{file}", content).sha256}
        | {"bytes": len(content)}
        for file, content in files.items()
    ]
    manifest = {"name": name, "version": version, "engine": engine, "files": stated, **fields}
    digest = write_manifest(store, prefix, Manifest.model_validate(manifest))
    log_release(store, name, version, digest)


def release_apart(
    store: Any, base: Path, adapter: Path, *, name: str = "a", version: str = "1"
) -> None:
    """Release a version of an adapter that llama.cpp serves beside a base."""
    sha256 = sha256_file(base)
    files = {MODEL_FILE: sha256}
    stated = {"uri": "file:///tiny", "digest": "d" * 64, "variant": "f16", "made_by": "a test"}
    form = BaseForm(**stated, sha256=sha256, files=files)
    form = keep_form(store, base, files, form, print)
    ours = sha256_file(adapter)
    apart = Apart(base=form, adapter=AdapterForm(sha256=ours, files={ADAPTER_FILE: ours}))
    engine = {
        "engine": "llama_cpp",
        "limits": {"max_batch_size": 4, "max_total_tokens": 256},
        "apart": apart.model_dump(),
    }
    files = {ADAPTER_FILE: adapter.read_bytes()}
    release(store, files, name=name, version=version, engine=engine)


def bare_release(run: Run, name: str | None = None, at: str = "2026-03-01T00:00:00Z") -> None:
    """Release the version of a run, without any file."""
    name = name or run.config.name
    prefix = model_prefix(name, run.run_id)
    manifest = Manifest(name=name, version=run.run_id, run={"uri": run.uri}, files=[])
    log_release(run.store, name, run.run_id, write_manifest(run.store, prefix, manifest), at)


def flip(path: Path) -> None:
    """Change a byte of a file."""
    raw = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:])


def forge(store: Any, document: Mapping[str, Any], name: str = "a", version: str = "1") -> None:
    """Release a version with any document as its manifest, as whoever writes to the store can."""
    raw = json.dumps(document).encode()
    digest = store.put_bytes(f"{model_prefix(name, version)}/manifest.json", raw).sha256
    log_release(store, name, version, digest)


def hostile(kind: str, bad: str, *, name: str = "a", version: str = "1") -> dict[str, Any]:
    """Return a manifest with a name that leads out of its folder."""
    digest = "0" * 64
    files = {"model/config.json": digest, "adapter.gguf": digest}
    base = {"uri": "u", "digest": digest, "variant": "f16", "key": "bases/b", "sha256": digest}
    apart = {
        "base": {**base, "files": {"model.gguf": digest}},
        "adapter": {"sha256": digest, "files": {"adapter.gguf": digest}},
    }
    stated: dict[str, Any] = {"name": name, "version": version}
    match kind:
        case "a file":
            files[f"model/{bad}"] = digest
        case "a file of the base":
            apart["base"]["files"] = {bad: digest}
        case "the base's key":
            apart["base"]["key"] = bad
        case "a file of the adapter":
            apart["adapter"]["files"] = {bad: digest}
        case "the model" | "the version":
            stated["name" if kind == "the model" else "version"] = bad
    engine = {"engine": "llama_cpp"} | (
        {"apart": apart} if "the base" in kind or "adapter" in kind else {}
    )
    listed = [{"name": file, "sha256": sha256, "bytes": 1} for file, sha256 in files.items()]
    return {"schema": "tuneline/manifest/1", **stated, "engine": engine, "files": listed}


HOSTILE = (
    "a file",
    "a file of the base",
    "the base's key",
    "a file of the adapter",
    "the model",
    "the version",
)
