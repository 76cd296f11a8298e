"""The released model of a store: which version it is, and its weights on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tuneline.errors import TunelineError
from tuneline.store import NotThere, Store

WEIGHTS = "model.gguf"
_POINTER = "production.json"


@dataclass(frozen=True)
class Release:
    """A released model version.

    Attributes:
        name: the model's name.
        version: its version, the id of the run that made it.
        released_at: when it was released, RFC 3339.
    """

    name: str
    version: str
    released_at: str


def releases(store: Store) -> list[Release]:
    """Every model of a store that has a released version, the newest last."""
    found = []
    for key in store.keys("models"):
        if key.endswith(f"/{_POINTER}") and key.count("/") == 2:
            pointer = json.loads(store.get_bytes(key))
            found.append(Release(pointer["name"], pointer["version"], pointer["released_at"]))
    return sorted(found, key=lambda release: release.released_at)


def newest_release(store: Store, name: str | None = None) -> Release | None:
    """The model released last, or the release of a name; None when there is none."""
    found = [release for release in releases(store) if name in (None, release.name)]
    return found[-1] if found else None


def fetch_weights(store: Store, release: Release, folder: Path) -> Path:
    """Bring a release's weights onto this machine, checked against its manifest.

    Args:
        store: the store of the release.
        release: the version.
        folder: where versions are kept; `<folder>/<name>/<version>/model.gguf`.

    Raises:
        TunelineError: the release has no weights for llama.cpp, or they are missing.
        CorruptObject: they are not the bytes that were evaluated.
    """
    prefix = f"models/{release.name}/{release.version}"
    manifest = json.loads(store.get_bytes(f"{prefix}/manifest.json"))
    hashes = {entry["name"]: entry["sha256"] for entry in manifest["files"]}
    if WEIGHTS not in hashes:
        raise TunelineError(
            f"{release.name} {release.version} holds no {WEIGHTS}, which is what llama.cpp "
            "serves; deploy it with the engine it was built for"
        )
    target = folder / release.name / release.version / WEIGHTS
    if not target.exists():
        try:
            store.get_file(f"{prefix}/{WEIGHTS}", target, sha256=hashes[WEIGHTS])
        except NotThere as error:
            raise TunelineError(f"the release is incomplete: {error}") from None
    return target
