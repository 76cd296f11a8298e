"""Releases of a run, written as lineage and promote write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.lab.releases import log_release
from tests.lab.runs import Lab

from tuneline.artifacts.governance import Manifest, ManifestFile, ReleasePointer
from tuneline.artifacts.releases import model_prefix, pointer_of
from tuneline.governance.release.manifest import put_once, write_manifest
from tuneline.models import resolve
from tuneline.store import sha256_file


def release(
    lab: Lab,
    files: Mapping[str, Path],
    *,
    lora: Mapping[str, Any] | None = None,
    previous: str | None = None,
    base: Path | None = None,
    engine: str = "llama_cpp",
) -> ReleasePointer:
    """Release the version of a run."""
    store, config, version = lab.run.store, lab.run.config, lab.run.run_id
    prefix = model_prefix(config.name, version)
    stated = []
    for name, path in files.items():
        digest = sha256_file(path)
        put_once(store, f"{prefix}/{name}", path, digest)
        stated.append(ManifestFile(name=name, sha256=digest, bytes=path.stat().st_size))
    model = resolve(str(base or config.base_model), log=lambda _: None)
    manifest = Manifest(
        name=config.name,
        version=version,
        run={"uri": lab.run.uri},
        base_model={"uri": model.uri, "digest": model.digest},
        hyperparameters={"lora": lora},
        engine={"engine": engine, "version": "xllamacpp 0"},
        previous_version=previous,
        files=stated,
    )
    digest = write_manifest(store, prefix, manifest)
    return log_release(store, config.name, version, digest, which=pointer_of(config.profile))
