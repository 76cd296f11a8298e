"""A released version of a store on this machine: its files, and the engine that serves it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from tuneline.artifacts.deployment import BaseForm, EngineIdentity
from tuneline.artifacts.governance import PointerName, ReleasePointer
from tuneline.artifacts.release_log import read_log, withdrawal
from tuneline.artifacts.releases import (
    ADAPTER_FILE,
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
from tuneline.files import FileState, file_state, inside, sha256_file, write_whole
from tuneline.models.base_model import digest_of
from tuneline.models.cache import cache_root
from tuneline.models.origins import at_once
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.server import (
    ServedSizes,
    ServeRequest,
    largest,
    served_sizes,
    threads_here,
)
from tuneline.store import Store, open_store

# The latency benchmark's measurement of the best throughput, completion tokens per second.
THROUGHPUT = "peak_tokens_per_s"
# The name in the API of a base that adapters are served on.
BASE_ALIAS = "base"
_TOKENIZER = "tokenizer.json"
# Files that are served, or read, without a folder around them.
_ALONE = {MODEL_FILE, ADAPTER_FILE, _TOKENIZER}
# Between two looks for a first release.
_LOOK_SECONDS = 10.0


class Trust(Protocol):
    """Whose releases a host serves; signatures are on a floor above this one."""

    def in_pointer(self, store: Store, name: str, version: str) -> list[str]:
        """Return how the pointer of a model differs from the release logs."""

    def in_release(self, release: Release) -> list[str]:
        """Return how a version differs from one that the key has signed."""


def newest_release(
    store: Store, name: str | None = None, which: PointerName = "production"
) -> ReleasePointer | None:
    """Return the pointer of the model released last, or that of a name; None if there is none.

    Raises:
        CorruptObject: if that pointer can't be read; without a name it is passed over, and said so.
    """
    if name is not None:
        return read_release(store, name, which)
    found = []
    for each in model_names(store, which):
        try:
            pointer = read_release(store, each, which)
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
        sha256: the hash of its manifest; None takes that of its release log, if it has one.

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


def weights_sha256(release: Release) -> str | None:
    """Return the hash of what a release serves, by which its items name it; None without a model.

    That of its one file, or of the list of its files' hashes; for an adapter next to a base, that
    over both hashes.
    """
    if release.apart is not None:
        parts = {"base": release.apart.base.files, "adapter": release.apart.adapter.files}
        return digest_of({name: _whole(files) for name, files in parts.items()})
    files = {name: ref.sha256 for name, ref in release.model_files().items()}
    return _whole(files) if files else None


def _whole(files: Mapping[str, str]) -> str:
    return files.get(MODEL_FILE) or files.get(ADAPTER_FILE) or digest_of(files)


class LoadedWeights(BaseModel):
    """The hashes that the start of an engine recorded, in a file that its follower reads.

    Attributes:
        weights: hash of what each release serves, by `adapter_name`.
        files: the state of each file before it was hashed, by path.
    """

    weights: dict[str, str | None] = {}
    files: dict[Path, FileState] = {}

    def fault(self, releases: Iterable[Release]) -> str | None:
        """Return what differs from the releases, or has changed since; None if nothing does."""
        for release in releases:
            loaded, stated = self.weights.get(adapter_name(release)), weights_sha256(release)
            if loaded != stated:
                return f"it has loaded weights of SHA-256 {loaded}, {release.uri} states {stated}"
        for path, state in self.files.items():
            if not path.exists() or file_state(path) != state:
                return f"{path} was changed after it was checked, so it may have loaded other bytes"
        return None


def serve_request(
    releases: Sequence[Release], folder: Path, host: str, port: int
) -> tuple[ServeRequest, LoadedWeights]:
    """Fetch what releases serve, checked against their manifests, and say how it is served.

    Files that are there already are hashed again. The limits are the largest of those that the
    releases were measured with. Several releases are adapters that share one base.

    Raises:
        UserError: if a release has no model, a file of it is missing, or several are not adapters
            of one base on one engine.
        CorruptObject: if bytes are not those that were evaluated.
    """
    sizes = largest(_sizes_of(release) for release in releases)
    adapters: dict[str, Path] = {}
    loaded = LoadedWeights()

    def note(path: Path) -> None:
        loaded.files[path.absolute()] = file_state(path)

    if len(releases) > 1 or releases[0].apart is not None:
        base = _shared_base(releases)
        adapters = {
            adapter_name(one): _fetch(one, one.adapter_files(), folder, "adapter", note)
            for one in releases
        }
        model, alias = fetch_form(releases[0].store, base, print, before=note), BASE_ALIAS
    elif refs := releases[0].model_files():
        model, alias = _fetch(releases[0], refs, folder, note=note), releases[0].name
    else:
        raise UserError(f"{releases[0].uri} states no model; release a version that has one")
    served = (model, alias, sizes.parallel, sizes.context_tokens)
    threads = threads_here(sizes.threads)
    request = ServeRequest(*served, adapters=adapters, threads=threads, host=host, port=port)
    # Every file has the hash that its manifest states by now.
    loaded.weights |= {adapter_name(one): weights_sha256(one) for one in releases}
    return request, loaded


def _sizes_of(release: Release) -> ServedSizes:
    with readable(f"{release.uri}: engine"):
        identity = {"engine": release.engine, **(release.manifest.engine or {})}
        return served_sizes(EngineIdentity.model_validate(identity))


def _shared_base(releases: Sequence[Release]) -> BaseForm:
    first = releases[0]
    for release in releases:
        if release.apart is None:
            raise UserError(
                f"{release.name} {release.version} was released merged, so it shares no "
                "base with others; serve it by another engine, or release it with "
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


def _fetch(
    release: Release,
    refs: Mapping[str, FileRef],
    folder: Path,
    below: str = "",
    note: Callable[[Path], object] = lambda path: None,
) -> Path:
    """Fetch files, unless they are there with the bytes that the release states.

    Other files in the folder are deleted, since an engine may load all that it finds there. Returns
    the file that is served alone, or the folder.
    """
    target = folder / release.name / release.version / below

    def one(name: str) -> None:
        path = inside(target, name)
        if path.exists():
            note(path)
            if sha256_file(path) == refs[name].sha256:
                return
            print(f"{path} has other bytes than {refs[name].uri}: fetching it again", flush=True)
        note(release.fetch(refs[name], path))

    at_once(one, refs)
    for path in target.rglob("[!.]*"):
        if path.is_file() and path.relative_to(target).as_posix() not in refs:
            print(f"{path} does not belong to {release.uri}: deleting it", flush=True)
            path.unlink()
    return target / next(iter(refs)) if _ALONE.issuperset(refs) else target


def upstream_of(release: Release, place: int, base_url: str) -> dict[str, Any]:
    """Return a gateway's entry of a release, by its place in the engine of `serve_request`."""
    entry: dict[str, Any] = {
        "name": f"{release.name}-{release.version}",
        "base_url": base_url,
        "model": release.name,
        "version": release.version,
        "weights_sha256": weights_sha256(release),
        "defaults": release.manifest.defaults,
        "system": release.manifest.dataset.get("system"),
    }
    if release.manifest.engine:
        entry["context_tokens"] = _sizes_of(release).context_tokens
    apart = release.apart
    if apart is not None:
        entry["model"] = BASE_ALIAS
        # llama.cpp, which loads a GGUF file, knows adapters by their places.
        by_place = ADAPTER_FILE in apart.adapter.files
        entry["adapter"] = place if by_place else adapter_name(release)
    return entry


def fetch_tokenizer(release: Release, folder: Path) -> Path | None:
    """Fetch a release's `tokenizer.json`, None if it has none; raises as `serve_request`."""
    ref = release.find(_TOKENIZER)
    if ref is None:
        return None
    return _fetch(release, {_TOKENIZER: ref}, folder)


def run_engine(
    store_uri: str,
    *,
    names: Sequence[str],
    pointer: PointerName = "production",
    versions: Sequence[str] = (),
    host: str,
    port: int,
    parallel: int | None,
    wait: bool,
    trust: Trust | None = None,
    record: Path | None = None,
) -> int:
    """Fetch the released weights and replace this process by the engine that serves them.

    Args:
        pointer: which of their pointers.
        names: names of the models; none takes the model released last. Several must be adapters of
            one base, and a request names the adapter that answers.
        versions: `NAME@VERSION` of what is served in place of the released versions, with `@SHA256`
            of the manifest behind it where only that one is to be served.
        parallel: requests served at once; None takes the number that was measured.
        wait: whether to wait for a first release.
        record: file for `LoadedWeights`, written before the engine starts.

    Raises:
        UserError: if nothing is released and `wait` is off, a version may not be served here, the
            release's engine is not installed here, or several releases do not share one base.
    """
    store = open_store(store_uri)
    wanted: Sequence[str | None] = list(dict.fromkeys(names)) or [None]
    found = [_pinned(store, text, trust) for text in versions]
    found = found or [_released(store, _find(store, name, pointer, wait), trust) for name in wanted]
    release = found[0]
    engine = get_engine(release.engine)
    lacking = engine.missing()
    if lacking is not None:
        raise UserError(
            f"{release.name} {release.version} is served by {engine.name}, which can't be started "
            f"here: {lacking}; run this command in the image of that engine"
        )
    request, loaded = serve_request(found, cache_root() / "released", host, port)
    argv = engine.command(replace(request, parallel=parallel or request.parallel))
    served = ", ".join(f"{release.name} {release.version}" for release in found)
    print(f"serving {served} with {engine.title} on {host}:{port}", flush=True)
    for place, adapter in enumerate(request.adapters):
        print(f"adapter {place}: {adapter}", flush=True)
    if record is not None:
        write_whole(record, loaded.model_dump_json().encode(), lasting=False)
    os.execv(argv[0], argv)


def _pinned(store: Store, text: str, trust: Trust | None) -> Release:
    name, _, rest = text.partition("@")
    version, _, sha256 = rest.partition("@")
    if not name or not version:
        raise UserError(f"--release {text}: name a version as MODEL@VERSION")
    return open_version(store, name, version, sha256 or None, trust)


def _released(store: Store, pointer: ReleasePointer, trust: Trust | None) -> Release:
    """Return the version that a pointer names, if it may be served."""
    name, version = pointer.name, pointer.version
    if trust is not None and (differences := trust.in_pointer(store, name, version)):
        raise UserError(f"{name} {version} is not served here: {'; '.join(differences)}")
    return open_version(store, name, version, pointer.manifest_sha256, trust)


def _find(store: Store, name: str | None, which: PointerName, wait: bool) -> ReleasePointer:
    pointer = newest_release(store, name, which)
    if pointer is None and not wait:
        raise UserError(
            f"{store.uri} holds no released model{f' named {name}' if name else ''} "
            f"in {which}; a run of finetune_to_production makes one"
        )
    if pointer is None:
        print(f"waiting for a released model in {store.uri}", flush=True)
    while pointer is None:
        time.sleep(_LOOK_SECONDS)
        pointer = newest_release(store, name, which)
    return pointer
