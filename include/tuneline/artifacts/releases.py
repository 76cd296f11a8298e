"""The released version of a model and those before it, as their manifests state them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from tuneline.artifacts.artifact import fault
from tuneline.artifacts.deployment import Apart
from tuneline.artifacts.governance import Manifest, PointerMove, PointerName, ReleasePointer
from tuneline.errors import UserError, first_line
from tuneline.evidence import Evidence, FileRef, load_evidence
from tuneline.run import Run
from tuneline.store import CorruptObject, NotThere, Store

MANIFEST_FILE = "manifest.json"
POINTERS: tuple[PointerName, ...] = get_args(PointerName)
# The configuration of the run, and the limits of the platform that bounded it.
CONFIG_FILE, POLICY_FILE = "config.json", "policy.yaml"
# What a release serves: one file for llama.cpp, else a checkpoint, else a compiled engine.
MODEL_FILE = "model.gguf"
CHECKPOINT_FOLDER, ENGINE_FOLDER = "model/", "engine/"
# The adapter of a release that is served beside a base: a file for llama.cpp, else a PEFT folder,
# which every release has.
ADAPTER_FILE, ADAPTER_FOLDER = "adapter.gguf", "adapter/"
# All of what a release serves, files and folders.
SERVED = (MODEL_FILE, ADAPTER_FILE, CHECKPOINT_FOLDER, ENGINE_FOLDER)
# What promote adds about `lineage`, whose verdict the manifest can't state: its evidence, and the
# statement about it, plain or signed.
LINEAGE_EVIDENCE = "evidence/lineage/evidence.json"
LINEAGE_STATEMENTS = ("attestations/lineage.intoto.json", "attestations/lineage.dsse.json")


@dataclass(frozen=True)
class Release:
    """A version of a model that was released."""

    store: Store
    manifest: Manifest
    sha256: str = ""  # of the manifest's bytes; empty for one that was not read from a store

    @property
    def name(self) -> str:
        """The model."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The version, which is the id of the run that made it."""
        return self.manifest.version

    @property
    def uri(self) -> str:
        """URI of its manifest."""
        return self.store.uri_of(manifest_key(self.manifest.name, self.version))

    def run(self) -> Run:
        """Open the run that made it."""
        return Run.open(self.store.uri_of(f"runs/{self.version}"))

    def find(self, name: str) -> FileRef | None:
        """Return the address and hash of one of its files, None if it has no such file."""
        key = f"{model_prefix(self.manifest.name, self.version)}/{name}"
        for file in self.manifest.files:
            if file.name == name:
                uri = self.store.uri_of(key)
                return FileRef(name=name, uri=uri, sha256=file.sha256, bytes=file.bytes)
        return None

    def read(self, name: str) -> bytes | None:
        """Return the content of one of its files, verified; None if it has no such file."""
        ref = self.find(name)
        if ref is None:
            return None
        return self.store.get_bytes(self.store.key_of(ref.uri), sha256=ref.sha256)

    def evidence(self, item: str) -> Evidence | None:
        """Return the evidence that it ships of an item, verified; None if it ships none."""
        stated = self.manifest.evidence.get(item)
        raw = self.read(stated.file) if stated else None
        return load_evidence(raw, stated.file) if stated and raw else None

    @property
    def engine(self) -> str:
        """The engine that serves it."""
        return str((self.manifest.engine or {}).get("engine") or "llama_cpp")

    def model_files(self) -> dict[str, FileRef]:
        """Return what its engine loads: `model.gguf`, or the files of a folder by their names.

        A release that serves an adapter beside a base has none, see `apart`.
        """
        if single := self.find(MODEL_FILE):
            return {MODEL_FILE: single}
        for folder in (CHECKPOINT_FOLDER, ENGINE_FOLDER):
            names = [file.name for file in self.manifest.files if file.name.startswith(folder)]
            if names:
                found = {name.removeprefix(folder): self.find(name) for name in names}
                return {name: ref for name, ref in found.items() if ref is not None}
        return {}

    @property
    def apart(self) -> Apart | None:
        """The base and the adapter that it serves; None if it serves a merged model."""
        stated = (self.manifest.engine or {}).get("apart")
        with readable(f"{self.uri}: engine.apart"):
            return Apart.model_validate(stated) if stated else None

    def adapter_files(self) -> dict[str, FileRef]:
        """Return the adapter that is served beside a base: files by their names; {} if merged.

        Raises:
            CorruptObject: if the manifest names another adapter than it ships.
        """
        if self.apart is None:
            return {}
        found = {}
        for name, sha256 in self.apart.adapter.files.items():
            ref = self.find(name if name == ADAPTER_FILE else ADAPTER_FOLDER + name)
            if ref is None or ref.sha256 != sha256:
                raise CorruptObject(f"{self.uri} does not ship the adapter that it names: {name}")
            found[name] = ref
        return found

    def artifacts(self, step: str) -> list[FileRef]:
        """Return the artifacts that a step of its run left."""
        return self.run().entry(step).artifacts

    def artifact(self, step: str, name: str) -> FileRef | None:
        """Return an artifact of its run; None if the run, the step or the artifact is gone."""
        try:
            artifacts = self.artifacts(step)
        except UserError:
            return None
        return next((ref for ref in artifacts if ref.name == name), None)

    def fetch(self, ref: FileRef, target: Path) -> Path:
        """Fetch a file of the version or of its run, verified against its hash."""
        try:
            self.store.get_file(self.store.key_of(ref.uri), target, sha256=ref.sha256)
        except NotThere as error:
            raise UserError(
                f"the release {self.version} of {self.manifest.name} is incomplete: {error}; "
                "restore the file"
            ) from None
        return target


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Say in one sentence that a document of a release can't be read."""
    try:
        yield
    except ValidationError as error:
        why = fault(error)
    except KeyError as error:
        why = f"it lacks {error}"
    except (ValueError, TypeError, AttributeError) as error:
        why = first_line(error)
    else:
        return
    raise CorruptObject(
        f"{what} can't be read: {why}; restore it, or use the version of Tuneline that wrote it"
    ) from None


def pointer_of(profile: str) -> PointerName:
    """Return the pointer that runs of a profile move; what a laptop releases is not production."""
    return "production" if profile == "production" else "staging"


def read_release(
    store: Store, name: str, pointer: PointerName = "production"
) -> ReleasePointer | None:
    """Return a pointer of a model, None when nothing was released to it."""
    key = pointer_key(name, pointer)
    try:
        raw = store.get_bytes(key)
    except NotThere:
        return None
    with readable(store.uri_of(key)):
        found = ReleasePointer.model_validate_json(raw)
    if (found.name, found.pointer) != (name, pointer):
        raise CorruptObject(
            f"{store.uri_of(key)} is the {found.pointer} pointer of {found.name}; restore it"
        )
    return found


def current_release(store: Store, name: str) -> ReleasePointer | None:
    """Return the pointer to what is released of a model: to production, without that to staging."""
    found = (read_release(store, name, pointer) for pointer in POINTERS)
    return next((pointer for pointer in found if pointer is not None), None)


def released(run: Run) -> Release | None:
    """Return the release that a run would replace, None if nothing is released under its name.

    A step that is run again after the run itself was released is given the release before it.
    """
    pointer = read_release(run.store, run.config.name, pointer_of(run.config.profile))
    if pointer is None:
        return None
    if pointer.version == run.run_id:
        previous = pointer.previous_version
        return find_version(run.store, pointer.name, previous) if previous else None
    return open_release(run.store, pointer)


def open_release(store: Store, pointer: ReleasePointer) -> Release:
    """Return the version that a pointer names."""
    name, version = pointer.name, pointer.version
    found = find_version(store, name, version, pointer.manifest_sha256)
    if found is None:
        uri = store.uri_of(pointer_key(name, pointer.pointer))
        raise UserError(
            f"{uri} names version {version}, which has no "
            f"{store.uri_of(manifest_key(name, version))}; restore it"
        )
    return found


def find_version(
    store: Store, name: str, version: str, sha256: str | None = None
) -> Release | None:
    """Return a version of a model, None if the store has no manifest of it.

    Raises:
        CorruptObject: if the manifest has another hash, is none, or that of another version.
    """
    key = manifest_key(name, version)
    try:
        raw = store.get_bytes(key)
    except NotThere:
        return None
    digest = hashlib.sha256(raw).hexdigest()
    if sha256 is not None and digest != sha256:
        raise CorruptObject(
            f"{store.uri_of(key)} has SHA-256 {digest}, it was released with {sha256}; restore it"
        )
    with readable(store.uri_of(key)):
        manifest = Manifest.model_validate_json(raw)
    if (manifest.name, manifest.version) != (name, version):
        raise CorruptObject(
            f"{store.uri_of(key)} is the manifest of {manifest.name} {manifest.version}; restore it"
        )
    return Release(store, manifest, digest)


def ancestry(release: Release) -> Iterator[Release]:
    """Yield a release and those before it, newest first, as far as their manifests are there."""
    seen: set[str] = set()
    current: Release | None = release
    while current is not None and current.version not in seen:
        yield current
        seen.add(current.version)
        before = current.manifest.previous_version
        current = find_version(release.store, release.manifest.name, before) if before else None


def previous_version(pointer: ReleasePointer) -> str | None:
    """Return the version that was released before the present one and not left by a rollback.

    What a rollback moved away from is what nobody wants to be served any more.
    """
    standing = standing_moves(pointer.history)
    return standing[-2].version if len(standing) > 1 else None


def standing_moves(history: Sequence[PointerMove]) -> list[PointerMove]:
    """Return the moves whose versions still stand, oldest first; the last one is the release."""
    standing: list[PointerMove] = []
    for move in history:
        known = [earlier.version for earlier in standing]
        if move.event == "rolled_back" and move.version in known:
            del standing[known.index(move.version) + 1 :]
        else:
            standing.append(move)
    return standing


def model_names(store: Store, pointer: PointerName = "production") -> list[str]:
    """Return the names of all models of a store that have a pointer."""
    keys = (key.split("/") for key in store.keys("models"))
    return sorted({key[1] for key in keys if len(key) == 3 and key[2] == f"{pointer}.json"})


def model_prefix(name: str, version: str) -> str:
    """Return the key of a model version's folder."""
    return f"models/{name}/{version}"


def pointer_key(name: str, pointer: PointerName = "production") -> str:
    """Return the key of a pointer to a version of a model."""
    return f"models/{name}/{pointer}.json"


def manifest_key(name: str, version: str) -> str:
    """Return the key of a version's manifest."""
    return f"{model_prefix(name, version)}/{MANIFEST_FILE}"
