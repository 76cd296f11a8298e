"""The released model of a store: its version, its weights on this machine and its price."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.errors import TunelineError
from tuneline.store import NotThere, Store

WEIGHTS = "model.gguf"
# The latency benchmark's measurement of the best throughput, completion tokens per second.
THROUGHPUT = "peak_tokens_per_s"
_POINTER = "production.json"
_TOKENIZER = "tokenizer.json"
_LATENCY = "evidence/latency_benchmark/evidence.json"


@dataclass(frozen=True)
class Release:
    """A released model version.

    Attributes:
        name: the model's name.
        version: its version, the id of the run that made it.
        released_at: time of the release, RFC 3339.
    """

    name: str
    version: str
    released_at: str


@dataclass(frozen=True)
class Price:
    """The cost of the machine that serves a release, and its throughput.

    Attributes:
        hourly_cost: cost of the machine for an hour, in `currency`.
        tokens_per_second: completion tokens per second, the time for prompts included.
        currency: ISO 4217 code.
    """

    hourly_cost: float
    tokens_per_second: float
    currency: str


def releases(store: Store) -> list[Release]:
    """Return every model of a store that has a released version, the newest last."""
    found = []
    for key in store.keys("models"):
        if key.endswith(f"/{_POINTER}") and key.count("/") == 2:
            pointer = json.loads(store.get_bytes(key))
            found.append(Release(pointer["name"], pointer["version"], pointer["released_at"]))
    return sorted(found, key=lambda release: release.released_at)


def newest_release(store: Store, name: str | None = None) -> Release | None:
    """Return the model released last, or the release of a name; None if there is none."""
    found = [release for release in releases(store) if name in (None, release.name)]
    return found[-1] if found else None


def fetch_weights(store: Store, release: Release, folder: Path) -> Path:
    """Fetch a release's weights, checked against its manifest.

    Args:
        store: the store of the release.
        release: the version.
        folder: folder of the versions; the file is `<folder>/<name>/<version>/model.gguf`.

    Raises:
        TunelineError: if the release has no weights for llama.cpp, or they are missing.
        CorruptObject: if they are not the bytes that were evaluated.
    """
    weights = _fetch(store, release, WEIGHTS, folder)
    if weights is None:
        raise TunelineError(
            f"{release.name} {release.version} holds no {WEIGHTS}, which is what llama.cpp "
            "serves; deploy it with the engine it was built for"
        )
    return weights


def fetch_tokenizer(store: Store, release: Release, folder: Path) -> Path | None:
    """Fetch a release's `tokenizer.json`; None if the release has none.

    Raises:
        TunelineError: if it is missing.
        CorruptObject: if it is not the one that was shipped.
    """
    return _fetch(store, release, _TOKENIZER, folder)


def price(store: Store, release: Release) -> Price | None:
    """Return the price of serving a release, from its settings and its latency benchmark.

    Returns:
        The price; None if the release was never measured.
    """
    prefix = _prefix(release)
    try:
        settings = _settings(store, release)["governance"]
        evidence = json.loads(store.get_bytes(f"{prefix}/{_LATENCY}"))
    except NotThere:
        return None
    measured = {entry["name"]: entry["value"] for entry in evidence["measurements"]}
    throughput = measured.get(THROUGHPUT)
    if not throughput:
        return None
    hourly = float(settings["machine_cost_per_hour"])
    return Price(hourly, float(throughput), str(settings["currency"]))


def languages(store: Store, release: Release) -> list[str] | None:
    """Return the languages of the data of a release; None if the release has no settings."""
    try:
        return [str(code) for code in _settings(store, release)["data"]["languages"]]
    except (NotThere, KeyError):
        return None


def _settings(store: Store, release: Release) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(store.get_bytes(f"{_prefix(release)}/config.json"))
    return settings


def _prefix(release: Release) -> str:
    return f"models/{release.name}/{release.version}"


def _fetch(store: Store, release: Release, name: str, folder: Path) -> Path | None:
    """Fetch a file of a release, checked against its manifest; None if it names none."""
    prefix = _prefix(release)
    manifest = json.loads(store.get_bytes(f"{prefix}/manifest.json"))
    hashes = {entry["name"]: entry["sha256"] for entry in manifest["files"]}
    if name not in hashes:
        return None
    target = folder / release.name / release.version / name
    if not target.exists():
        try:
            store.get_file(f"{prefix}/{name}", target, sha256=hashes[name])
        except NotThere as error:
            raise TunelineError(f"the release is incomplete: {error}") from None
    return target
