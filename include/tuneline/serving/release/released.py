"""The released model of a store: its version, its weights on this machine and its price."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.artifacts.deployment import WARM_UP_FILE, BaseForm, EngineIdentity, WarmUp
from tuneline.artifacts.releases import ADAPTER_FILE, MODEL_FILE, find_version
from tuneline.artifacts.releases import Release as Version
from tuneline.bases.served import fetch_form
from tuneline.errors import UserError
from tuneline.serving.engines.engine_server import ServeRequest
from tuneline.serving.release.limits import ServedLimits, largest, served_limits, threads_here
from tuneline.store import CorruptObject, NotThere, Store, sha256_file

# The latency benchmark's measurement of the best throughput, completion tokens per second.
THROUGHPUT = "peak_tokens_per_s"
# The name in the API of a base that adapters are served on.
BASE_ALIAS = "base"
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


def engine_of(store: Store, release: Release) -> str:
    """Return the name of the engine that serves a release."""
    return _version(store, release).engine


def base_of(store: Store, release: Release) -> str | None:
    """Return the hash of the base that a release's adapter is served on; None if it is merged."""
    apart = _version(store, release).apart
    return None if apart is None else apart.base.sha256


def find_release(store: Store, name: str, version: str) -> Release:
    """Return a version of a model that need not be the released one.

    Raises:
        UserError: if it has no manifest.
    """
    release = Release(name, version, "")
    _version(store, release)
    return release


def adapter_name(release: Release) -> str:
    """Return the name of a release's adapter in the API of its engine."""
    return f"{release.name}@{release.version}"


def serve_request(
    store: Store, releases: Sequence[Release], folder: Path, host: str, port: int
) -> ServeRequest:
    """Fetch what releases serve, checked against their manifests, and say how it is served.

    The limits are those that they were measured with, the largest of several.

    Args:
        store: the store of the releases.
        releases: one release, or several whose adapters share one base.
        folder: folder of the versions; files lie below `<folder>/<name>/<version>`.
        host: address to listen on.
        port: port to listen on.

    Raises:
        UserError: if a release has no model, a file of it is missing, or several are not adapters
            of one base on one engine.
        CorruptObject: if bytes are not those that were evaluated.
    """
    versions = [_version(store, release) for release in releases]
    limits = largest(_limits_of(version) for version in versions)
    parallel, context = limits.parallel, limits.context_tokens
    threads = threads_here(limits.threads)
    if len(versions) > 1 or versions[0].apart is not None:
        base = _shared_base(versions)
        names = [adapter_name(release) for release in releases]
        adapters = {
            name: _fetch_adapter(version, folder)
            for name, version in zip(names, versions, strict=True)
        }
        model = fetch_form(store, base, print)
        return ServeRequest(
            model,
            BASE_ALIAS,
            parallel,
            context,
            adapters=adapters,
            threads=threads,
            host=host,
            port=port,
        )
    model = _fetch_model(versions[0], folder)
    name = releases[0].name
    return ServeRequest(model, name, parallel, context, threads=threads, host=host, port=port)


def _limits_of(version: Version) -> ServedLimits:
    identity = {"engine": version.engine, **(version.manifest.engine or {})}
    return served_limits(EngineIdentity.model_validate(identity))


def _shared_base(versions: Sequence[Version]) -> BaseForm:
    """Return the base that all versions are served on.

    Raises:
        UserError: if one of them is merged, or on another base or engine.
    """
    first = versions[0]
    for version in versions:
        if version.apart is None:
            raise UserError(
                f"{version.manifest.name} {version.version} was released merged, so it shares no "
                "base with others; serve it by an engine of its own, or release it with "
                "deployment.multi_tenant: true"
            )
        assert first.apart is not None
        ours, theirs = first.apart.base, version.apart.base
        if (first.engine, ours.sha256) != (version.engine, theirs.sha256):
            raise UserError(
                f"{version.manifest.name} {version.version} is an adapter of {theirs.uri} "
                f"({theirs.variant} on {version.engine}, {theirs.sha256[:12]}), but "
                f"{first.manifest.name} {first.version} of {ours.uri} ({ours.variant} on "
                f"{first.engine}, {ours.sha256[:12]}): one engine has one base; serve them by two"
            )
    assert first.apart is not None
    return first.apart.base


def _fetch_model(version: Version, folder: Path) -> Path:
    refs = version.model_files()
    if not refs:
        raise UserError(f"{version.uri} states no model; release a version that has one")
    target = folder / version.manifest.name / version.version
    for name, ref in refs.items():
        if not (target / name).exists():
            version.fetch(ref, target / name)
    return target / MODEL_FILE if MODEL_FILE in refs else target


def _fetch_adapter(version: Version, folder: Path) -> Path:
    refs = version.adapter_files()
    target = folder / version.manifest.name / version.version / "adapter"
    for name, ref in refs.items():
        path = target / name
        if not path.exists():
            version.fetch(ref, path)
        elif sha256_file(path) != ref.sha256:
            raise CorruptObject(f"{path} has other bytes than {ref.uri}; delete it and try again")
    return target / ADAPTER_FILE if ADAPTER_FILE in refs else target


def upstream_of(store: Store, release: Release, place: int, base_url: str) -> dict[str, Any]:
    """Return a gateway's entry of a release on an engine that `serve_request` describes.

    Args:
        store: the store of the release.
        release: the version.
        place: its place among the releases of that engine, from 0.
        base_url: where the engine's API begins, `/v1` included.
    """
    entry: dict[str, Any] = {
        "name": f"{release.name}-{release.version}",
        "base_url": base_url,
        "model": release.name,
        "version": release.version,
    }
    version = _version(store, release)
    if version.manifest.engine:
        entry["context_tokens"] = _limits_of(version).context_tokens
    apart = version.apart
    if apart is not None:
        entry["model"] = BASE_ALIAS
        # llama.cpp, which loads a GGUF file, knows adapters by their places.
        by_place = ADAPTER_FILE in apart.adapter.files
        entry["adapter"] = place if by_place else adapter_name(release)
    return entry


def fetch_tokenizer(store: Store, release: Release, folder: Path) -> Path | None:
    """Fetch a release's `tokenizer.json`; None if the release has none.

    Raises:
        UserError: if it is missing.
        CorruptObject: if it is not the one that was shipped.
    """
    version = _version(store, release)
    ref = version.find(_TOKENIZER)
    if ref is None:
        return None
    target = folder / release.name / release.version / _TOKENIZER
    return target if target.exists() else version.fetch(ref, target)


def warm_up_system(store: Store, release: Release) -> str | None:
    """Return the system turn that a release's prompts begin with, None if it states none.

    An adapter beside its base has none: where adapters share an engine, no prompt is kept.

    Raises:
        CorruptObject: if the file has other bytes than the release states.
    """
    version = _version(store, release)
    raw = None if version.apart is not None else version.read(WARM_UP_FILE)
    return WarmUp.model_validate_json(raw).system if raw else None


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


def _version(store: Store, release: Release) -> Version:
    """Return a version's manifest and files.

    Raises:
        UserError: if it has no manifest.
    """
    found = find_version(store, release.name, release.version)
    if found is None:
        raise UserError(
            f"{store.uri_of(_prefix(release))} has no manifest.json; restore it, or release "
            "another version"
        )
    return found
