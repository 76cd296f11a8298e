"""The released model of a store: its version, its weights on this machine and its price."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tuneline.artifacts.deployment import WARM_UP_FILE, BaseForm, EngineIdentity, WarmUp
from tuneline.artifacts.governance import ReleasePointer
from tuneline.artifacts.release_log import read_log, withdrawal
from tuneline.artifacts.releases import (
    ADAPTER_FILE,
    CONFIG_FILE,
    MODEL_FILE,
    Release,
    find_version,
    model_names,
    model_prefix,
    read_release,
    readable,
)
from tuneline.bases import fetch_form
from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.evidence import FileRef
from tuneline.files import inside, sha256_file
from tuneline.models.origins import at_once
from tuneline.serving.engines.engine_server import ServeRequest
from tuneline.serving.release.limits import ServedLimits, largest, served_limits, threads_here
from tuneline.store import Store

# The latency benchmark's measurement of the best throughput, completion tokens per second.
THROUGHPUT = "peak_tokens_per_s"
# The name in the API of a base that adapters are served on.
BASE_ALIAS = "base"
_TOKENIZER = "tokenizer.json"
_LATENCY = "evidence/latency_benchmark/evidence.json"


class Trust(Protocol):
    """Whose releases a host serves; signatures are on a floor above this one."""

    def in_pointer(self, store: Store, name: str, version: str) -> list[str]:
        """Return how the pointer of a model differs from the release logs."""

    def in_release(self, release: Release) -> list[str]:
        """Return how a version differs from one that the signer has released."""


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


def newest_release(store: Store, name: str | None = None) -> ReleasePointer | None:
    """Return the pointer of the model released last, or that of a name; None if there is none.

    Raises:
        CorruptObject: if that pointer can't be read; without a name it is passed over, and said so.
    """
    if name is not None:
        return read_release(store, name)
    found = []
    for each in model_names(store):
        try:
            pointer = read_release(store, each)
        except RetryableError:
            raise
        except TunelineError as error:
            print(f"tuneline: {error}", file=sys.stderr, flush=True)
            continue
        found += [pointer] if pointer else []
    return max(found, key=lambda pointer: pointer.released_at, default=None)


def open_version(
    store: Store, name: str, version: str, sha256: str | None = None, trust: Trust | None = None
) -> Release:
    """Return a version of a model, which need not be the released one.

    Args:
        store: the store.
        name: the model.
        version: its version.
        sha256: the hash of its manifest; None takes the one that its release log begins with, if
            it has one.
        trust: whose releases are served; None serves all.

    Raises:
        UserError: if it has no manifest, was withdrawn, or may not be served here.
        CorruptObject: if the manifest is another one, or it or the log can't be read.
    """
    lines = read_log(store, name, version).lines()
    if why := withdrawal(lines):
        raise UserError(f"{name} {version} was withdrawn: {why}; release another version")
    if sha256 is None and lines:
        sha256 = lines[0].previous_sha256
    found = find_version(store, name, version, sha256)
    if found is None:
        raise UserError(
            f"{store.uri_of(model_prefix(name, version))} has no manifest.json; restore it, or "
            "release another version"
        )
    if trust is not None and (differences := trust.in_release(found)):
        raise UserError(f"{name} {version} is not served here: {'; '.join(differences)}")
    return found


def adapter_name(release: Release) -> str:
    """Return the name of a release's adapter in the API of its engine."""
    return f"{release.name}@{release.version}"


def serve_request(releases: Sequence[Release], folder: Path, host: str, port: int) -> ServeRequest:
    """Fetch what releases serve, checked against their manifests, and say how it is served.

    Files that are there already are hashed again. The limits are those that the releases were
    measured with, the largest of several.

    Args:
        releases: one release, or several whose adapters share one base.
        folder: folder of the versions; files lie below `<folder>/<name>/<version>`.
        host: address to listen on.
        port: port to listen on.

    Raises:
        UserError: if a release has no model, a file of it is missing, or several are not adapters
            of one base on one engine.
        CorruptObject: if bytes are not those that were evaluated.
    """
    limits = largest(_limits_of(release) for release in releases)
    parallel, context = limits.parallel, limits.context_tokens
    threads = threads_here(limits.threads)
    if len(releases) > 1 or releases[0].apart is not None:
        base = _shared_base(releases)
        adapters = {adapter_name(release): _fetch_adapter(release, folder) for release in releases}
        model = fetch_form(releases[0].store, base, print)
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
    model = _fetch_model(releases[0], folder)
    name = releases[0].name
    return ServeRequest(model, name, parallel, context, threads=threads, host=host, port=port)


def _limits_of(release: Release) -> ServedLimits:
    with readable(f"{release.uri}: engine"):
        identity = {"engine": release.engine, **(release.manifest.engine or {})}
        return served_limits(EngineIdentity.model_validate(identity))


def _shared_base(releases: Sequence[Release]) -> BaseForm:
    """Return the base that all releases are served on.

    Raises:
        UserError: if one of them is merged, or on another base or engine.
    """
    first = releases[0]
    for release in releases:
        if release.apart is None:
            raise UserError(
                f"{release.name} {release.version} was released merged, so it shares no "
                "base with others; serve it by an engine of its own, or release it with "
                "deployment.multi_tenant: true"
            )
        assert first.apart is not None
        ours, theirs = first.apart.base, release.apart.base
        if (first.engine, ours.sha256) != (release.engine, theirs.sha256):
            raise UserError(
                f"{release.name} {release.version} is an adapter of {theirs.uri} "
                f"({theirs.variant} on {release.engine}, {theirs.sha256[:12]}), but "
                f"{first.name} {first.version} of {ours.uri} ({ours.variant} on "
                f"{first.engine}, {ours.sha256[:12]}): one engine has one base; serve them by two"
            )
    assert first.apart is not None
    return first.apart.base


def _fetch_model(release: Release, folder: Path) -> Path:
    refs = release.model_files()
    if not refs:
        raise UserError(f"{release.uri} states no model; release a version that has one")
    target = folder / release.name / release.version
    _fetch(release, refs, target)
    return target / MODEL_FILE if MODEL_FILE in refs else target


def _fetch_adapter(release: Release, folder: Path) -> Path:
    refs = release.adapter_files()
    target = folder / release.name / release.version / "adapter"
    _fetch(release, refs, target)
    return target / ADAPTER_FILE if ADAPTER_FILE in refs else target


def _fetch(release: Release, refs: Mapping[str, FileRef], target: Path) -> None:
    """Fetch files into a folder, unless they are there with the bytes that the release states."""

    def one(name: str) -> None:
        path = inside(target, name)
        if path.exists():
            if sha256_file(path) == refs[name].sha256:
                return
            print(f"{path} has other bytes than {refs[name].uri}: fetching it again", flush=True)
        release.fetch(refs[name], path)

    at_once(one, refs)


def upstream_of(release: Release, place: int, base_url: str) -> dict[str, Any]:
    """Return a gateway's entry of a release on an engine that `serve_request` describes.

    Args:
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
    if release.manifest.engine:
        entry["context_tokens"] = _limits_of(release).context_tokens
    apart = release.apart
    if apart is not None:
        entry["model"] = BASE_ALIAS
        # llama.cpp, which loads a GGUF file, knows adapters by their places.
        by_place = ADAPTER_FILE in apart.adapter.files
        entry["adapter"] = place if by_place else adapter_name(release)
    return entry


def fetch_tokenizer(release: Release, folder: Path) -> Path | None:
    """Fetch a release's `tokenizer.json`; None if the release has none.

    Raises:
        UserError: if it is missing.
        CorruptObject: if it is not the one that was shipped.
    """
    ref = release.find(_TOKENIZER)
    if ref is None:
        return None
    target = folder / release.name / release.version
    _fetch(release, {_TOKENIZER: ref}, target)
    return target / _TOKENIZER


def warm_up_system(release: Release) -> str | None:
    """Return the system turn that a release's prompts begin with, None if it states none.

    An adapter beside its base has none: where adapters share an engine, no prompt is kept.

    Raises:
        CorruptObject: if the file has other bytes than the release states, or can't be read.
    """
    raw = None if release.apart is not None else release.read(WARM_UP_FILE)
    with readable(f"{WARM_UP_FILE} of {release.uri}"):
        return WarmUp.model_validate_json(raw).system if raw else None


def price(release: Release) -> Price | None:
    """Return the price of serving a release, from its settings and its latency benchmark.

    Returns:
        The price; None if the release was never measured.

    Raises:
        CorruptObject: if a file has other bytes than the release states, or can't be read.
    """
    settings, raw = _settings(release), release.read(_LATENCY)
    if settings is None or raw is None:
        return None
    with readable(f"{_LATENCY} of {release.uri}"):
        measured = {entry["name"]: entry["value"] for entry in json.loads(raw)["measurements"]}
        throughput = float(measured.get(THROUGHPUT) or 0)
    if not throughput:
        return None
    with readable(f"{CONFIG_FILE} of {release.uri}"):
        governance = settings["governance"]
        hourly, currency = float(governance["machine_cost_per_hour"]), governance["currency"]
    return Price(hourly, throughput, str(currency))


def languages(release: Release) -> list[str] | None:
    """Return the languages of the data of a release; None if the release does not state them."""
    settings = _settings(release) or {}
    with readable(f"{CONFIG_FILE} of {release.uri}"):
        found = settings.get("data", {}).get("languages")
        return None if found is None else [str(code) for code in found]


def _settings(release: Release) -> dict[str, Any] | None:
    raw = release.read(CONFIG_FILE)
    with readable(f"{CONFIG_FILE} of {release.uri}"):
        return None if raw is None else dict(json.loads(raw))
