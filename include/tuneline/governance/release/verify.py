"""Recompute what a manifest states: files, dataset, sources, log, pointer, signature, lineage.

Nothing is copied: every hash is computed where the bytes lie, several files at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from tuneline.artifacts.artifact import fault
from tuneline.artifacts.governance import Manifest
from tuneline.artifacts.release_log import LOG_FILE, Released, read_log
from tuneline.artifacts.releases import (
    LINEAGE_EVIDENCE,
    LINEAGE_STATEMENTS,
    MANIFEST_FILE,
    Release,
    manifest_key,
    model_prefix,
)
from tuneline.config import GovernanceConfig
from tuneline.errors import TunelineError, UserError, first_line
from tuneline.governance.release.basis import copy_differences
from tuneline.governance.release.dataset_check import check_sources, dataset_difference
from tuneline.governance.release.keyless import Identity
from tuneline.governance.release.lineage_check import lineage_differences
from tuneline.governance.release.logs_check import pointer_differences
from tuneline.governance.release.signature import (
    SIGNATURE,
    require_usable,
    signature_difference,
)
from tuneline.store import CorruptObject, NotThere, Store, open_store
from tuneline.terminal import track

# Hashing takes a core each; reading from a server waits more than it works.
_AT_ONCE = 8
# What lies in a version's folder beside the files that its manifest states.
_OWN_FILES = (MANIFEST_FILE, LOG_FILE, SIGNATURE, LINEAGE_EVIDENCE, *LINEAGE_STATEMENTS)


@dataclass
class Findings:
    """What `tuneline verify` found.

    Attributes:
        differences: one sentence for each difference.
        unchecked: one sentence for each thing that could not be compared with bytes.
    """

    differences: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Version:
    """The place of a model version.

    Attributes:
        store: the store.
        name: the model.
        version: its version.
    """

    store: Store
    name: str
    version: str

    @classmethod
    def of(cls, manifest_uri: str) -> Version:
        """Take the address of a manifest apart.

        Raises:
            UserError: if it is not the address of a manifest.
        """
        root, models, rest = manifest_uri.rpartition("/models/")
        parts = rest.split("/")
        if not models or len(parts) != 3 or parts[2] != MANIFEST_FILE:
            raise UserError(f"{manifest_uri!r} is not the URI of a manifest.json below /models/")
        return cls(open_store(root), parts[0], parts[1])

    @property
    def prefix(self) -> str:
        """Key of its folder."""
        return model_prefix(self.name, self.version)

    def manifest(self, sha256: str | None = None) -> tuple[Manifest, str]:
        """Read its manifest; return it and the hash of its bytes.

        Args:
            sha256: the hash that the bytes must have; None takes them as they were written.

        Raises:
            UserError: if there is none.
            CorruptObject: if it is not the one that was written.
            ValueError: if it is not a manifest.
        """
        raw = self.store.get_bytes(manifest_key(self.name, self.version), sha256=sha256)
        return Manifest.model_validate_json(raw), hashlib.sha256(raw).hexdigest()


def verify(manifest_uri: str) -> list[str]:
    """Recompute everything that a manifest states; see `examine`."""
    return examine(manifest_uri).differences


def examine(manifest_uri: str, signer: Path | Identity | None = None) -> Findings:
    """Recompute everything that a manifest states, and compare the model's pointer and logs.

    Args:
        manifest_uri: address of a `manifest.json`.
        signer: key of the person or service that signs releases, a PEM file, or the identity;
            without one a signature is not checked.

    Raises:
        UserError: if there is no manifest at that address, or the key can't be used.
    """
    place = Version.of(manifest_uri)
    found = _version(place, signer)
    found.differences += pointer_differences(place.store, place.name, place.version, whole=True)
    try:
        manifest, digest = place.manifest()
    except (TunelineError, ValueError):
        return found
    changed, unchecked = check_sources(manifest)
    found.differences += changed
    found.unchecked += unchecked
    changed, unchecked = lineage_differences(place.store, place.name, place.version, digest, signer)
    found.differences += changed
    found.unchecked += unchecked
    return found


def version_differences(manifest_uri: str) -> list[str]:
    """Compare the files of a version with its manifest, and the dataset that it was made from."""
    return _version(Version.of(manifest_uri), None).differences


def served_differences(store: Store, name: str, version: str) -> list[str]:
    """Return what differs of a released version in what is served, and in its log and pointer.

    The dataset may be gone since: no engine reads it.

    Raises:
        UserError: if it has no manifest.
    """
    place = Version(store, name, version)
    try:
        manifest, _ = place.manifest()
    except NotThere:
        raise
    except (TunelineError, ValidationError) as error:
        return [first_line(error)]
    return [
        *_identity(place, manifest),
        *_files(place, manifest),
        *pointer_differences(store, name, version, whole=False),
    ]


class SignedBy:
    """Releases by one signer: what a host that serves accepts.

    Small objects are read, no model: whoever loads its files compares them with the manifest.

    Args:
        signer: who must have signed a release.

    Raises:
        UserError: if the key can't be read, or the library is missing.
    """

    def __init__(self, signer: Path | Identity) -> None:
        require_usable(signer)
        self._signer = signer

    def in_pointer(self, store: Store, name: str, version: str) -> list[str]:
        """Return how the pointer of a model differs from the release logs."""
        return pointer_differences(store, name, version, whole=False)

    def in_release(self, release: Release) -> list[str]:
        """Return how a version differs from one that the signer has released.

        Raises:
            CorruptObject: if the release log is damaged.
            RetryableError: if the store, or Sigstore for an identity, can't be reached.
        """
        store, name, version = release.store, release.name, release.version
        place, manifest = Version(store, name, version), release.manifest
        found = [*_identity(place, manifest)]
        lines = read_log(store, name, version).lines()
        if not any(isinstance(line.event, Released) for line in lines):
            found.append("it was never released, so nothing says that it may be served")
        stated = (release.sha256, self._signer)
        found += signature_difference(store, place.prefix, manifest, *stated)[0]
        return found + lineage_differences(store, name, version, *stated)[0]


def promotion_differences(manifest_uri: str, settings: GovernanceConfig) -> list[str]:
    """Return what differs of a version that is about to be released.

    The logs of the version and of the released one are compared, not those of all others. The
    files that the dataset was read from may have changed since: training has read the dataset.
    """
    place = Version.of(manifest_uri)
    signer: Path | Identity | None = Path(settings.public_key) if settings.public_key else None
    if settings.keyless is not None:
        signer = Identity.of(settings.keyless)
    return [
        *_version(place, signer).differences,
        *pointer_differences(place.store, place.name, place.version, whole=False),
    ]


def _version(place: Version, signer: Path | Identity | None) -> Findings:
    """Compare files, evidence, dataset, parent and signature of a version with its manifest."""
    store, found = place.store, Findings()
    try:
        manifest, digest = place.manifest()
    except NotThere:
        raise
    except TunelineError as error:
        return Findings([str(error)])
    except ValidationError as error:
        uri = store.uri_of(manifest_key(place.name, place.version))
        return Findings([f"{uri} is not a manifest: {fault(error)}"])
    found.differences += _identity(place, manifest)
    found.differences += _files(place, manifest)
    found.differences += _files_too_many(place, manifest)
    found.differences += copy_differences(store, manifest)
    found.differences += _parent(place, manifest)
    changed, unchecked = dataset_difference(store, manifest)
    found.differences += changed
    found.unchecked += unchecked
    changed, unchecked = signature_difference(store, place.prefix, manifest, digest, signer)
    found.differences += changed
    found.unchecked += unchecked
    return found


def _identity(place: Version, manifest: Manifest) -> Iterator[str]:
    """Compare the manifest's own name with its place, and its evidence with its files."""
    uri = place.store.uri_of(manifest_key(place.name, place.version))
    if (manifest.name, manifest.version) != (place.name, place.version):
        yield f"{uri} is the manifest of {manifest.name} {manifest.version}"
    stated = {entry.name for entry in manifest.files}
    for item, evidence in manifest.evidence.items():
        if evidence.file not in stated:
            yield f"{uri} names {evidence.file} of {item}, but states no hash of it"


def _files(place: Version, manifest: Manifest) -> Iterator[str]:
    """Recompute the hash of every file, those of a shared base in the store included."""
    entries: list[tuple[str, str, int | None]] = [
        (f"{place.prefix}/{entry.name}", entry.sha256, entry.bytes) for entry in manifest.files
    ]
    try:
        apart = Release(place.store, manifest).apart
    except CorruptObject as error:
        yield str(error)
        apart = None
    if apart is not None and apart.base.key is not None:
        entries += [
            (f"{apart.base.key}/{name}", sha256, None) for name, sha256 in apart.base.files.items()
        ]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = pool.map(lambda entry: hash_difference(place.store, *entry), entries)
        yield from filter(None, track(answers, len(entries), "hashing the files"))


def hash_difference(store: Store, key: str, sha256: str, size: int | None = None) -> str | None:
    """Recompute the hash of an object; return how it differs, None if it does not."""
    uri = store.uri_of(key)
    try:
        ref = store.rehash(key)
    except NotThere:
        return f"{uri} is missing"
    except TunelineError as error:
        return str(error)
    if ref.sha256 != sha256:
        return f"{uri} is corrupt: its SHA-256 is {ref.sha256}, the manifest says {sha256}"
    if size not in (None, ref.bytes):
        return f"{uri} has {ref.bytes} bytes, the manifest says {size}"
    return None


def _files_too_many(place: Version, manifest: Manifest) -> Iterator[str]:
    stated = {*_OWN_FILES, *(entry.name for entry in manifest.files)}
    for key in place.store.keys(place.prefix):
        if key.removeprefix(f"{place.prefix}/") not in stated:
            yield f"{place.store.uri_of(key)} is a file too many: the manifest does not name it"


def _parent(place: Version, manifest: Manifest) -> Iterable[str]:
    """Compare the manifest of the release before, as long as it is kept."""
    parent = manifest.parent
    if parent is None:
        return []
    key = manifest_key(place.name, parent.version)
    if not place.store.exists(key):
        return []
    found = hash_difference(place.store, key, parent.manifest_sha256)
    return [found] if found else []
