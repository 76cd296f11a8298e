"""Recompute what a manifest states: files, dataset, sources, log, pointer, signature, lineage.

Nothing is copied: every hash is computed where the bytes lie, several files at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

from pydantic import TypeAdapter, ValidationError

from tuneline.artifacts.artifact import fault
from tuneline.artifacts.data import SourceKept
from tuneline.artifacts.governance import Basis, Manifest, ManifestEvidence
from tuneline.artifacts.release_log import LOG_FILE, Erased, Line, Released, Withdrawn, read_log
from tuneline.artifacts.releases import (
    LINEAGE_EVIDENCE,
    LINEAGE_STATEMENTS,
    MANIFEST_FILE,
    POLICY_FILE,
    SERVED,
    Release,
    manifest_key,
    model_prefix,
)
from tuneline.config import GovernanceConfig
from tuneline.errors import TunelineError, UserError, first_line
from tuneline.evidence import Evidence, Verdict, worse
from tuneline.governance.release.log_check import DAMAGE, lineage_differences, pointer_differences
from tuneline.governance.release.signature import SIGNATURE, require_usable, signature_difference
from tuneline.store import CorruptObject, NotThere, S3Store, Store, open_store, sha256_file
from tuneline.terminal import track
from tuneline.verdicts import OUT_OF_DATE

# By path; `*` stands for any key. A longer path goes before a shorter one.
BASIS: dict[str, Basis] = {
    "schema": "declared",
    "created_at": "declared",
    "name": "checked",
    "version": "checked",
    "run": "declared",
    "started_by": "declared",
    "airflow_run": "declared",
    "reason": "declared",
    "base_model": "declared",
    "dataset": "checked",
    "dataset.source": "declared",
    "dataset_file": "checked",
    "dataset_file.rows": "declared",
    "code": "declared",
    "hyperparameters": "declared",
    "hyperparameters.lora": "checked",
    "hyperparameters.plan": "checked",
    "engine": "checked",
    "defaults": "declared",
    "evidence": "checked",
    "evidence.*.because": "declared",
    "environments": "declared",
    "seeds": "declared",
    "previous_version": "checked",
    "parent": "checked",
    "policy": "declared",
    "policy.sha256": "checked",
    "signature": "checked",
    "basis": "declared",
    "files": "checked",
}
# A person accepted what the evidence says, or it was withdrawn.
_BETTER_THAN_EVIDENCE = (Verdict.WAIVED, Verdict.NOT_RUN)


def copy_differences(store: Store, manifest: Manifest) -> Iterator[str]:
    """Compare what the manifest repeats with the files of the release that it was copied from.

    A file that is missing or has other bytes than the manifest states is left to the hashes. A
    manifest without a basis, as they were written before, promises no copies.
    """
    if not manifest.basis:
        return
    release = Release(store, manifest)
    dataset = {k: v for k, v in manifest.dataset.items() if k != "source"}
    for path, copy, name in (
        ("dataset", dataset, "dataset.json"),
        ("hyperparameters.lora", manifest.hyperparameters.get("lora"), "lora.json"),
        ("hyperparameters.plan", manifest.hyperparameters.get("plan"), "plan.json"),
        ("engine", manifest.engine, "identity.json"),
    ):
        raw = _read(release, name)
        if raw is not None and json.loads(raw) != copy:
            yield f"{release.uri}: {path} is not what {name} of the release says"
    policy = release.find(POLICY_FILE)
    stated_policy = manifest.policy.sha256 if manifest.policy else None
    if stated_policy != (policy.sha256 if policy else None):
        yield f"{release.uri}: policy.sha256 is not the hash of {POLICY_FILE} of the release"
    for item, stated in manifest.evidence.items():
        yield from _evidence_differences(release, item, stated)
    for entry in manifest.files:
        folder, _, name = entry.name.rpartition("/")
        item = folder.removeprefix("evidence/")
        if name == "evidence.json" and item not in manifest.evidence:
            yield f"{release.uri} states no verdict of {item}, but ships {entry.name}"
    parent = manifest.parent.version if manifest.parent else None
    if manifest.previous_version != parent:
        yield f"{release.uri}: previous_version is not the version of its parent"


def _evidence_differences(release: Release, item: str, stated: ManifestEvidence) -> Iterator[str]:
    raw = _read(release, stated.file)
    if raw is None:
        return
    try:
        evidence = Evidence.model_validate_json(raw)
    except ValidationError as error:
        yield f"{release.uri}: {stated.file} is not evidence: {error.errors()[0]['msg']}"
        return
    if wrong := [name for name, holds in _agreements(item, stated, evidence).items() if not holds]:
        yield (
            f"{release.uri}: {', '.join(wrong)} of {item} "
            f"{'is' if len(wrong) == 1 else 'are'} not what {stated.file} says"
        )


def _agreements(item: str, stated: ManifestEvidence, evidence: Evidence) -> dict[str, bool]:
    """Return of each word of an item's entry whether its evidence bears it."""
    verdict = Verdict(stated.verdict) if stated.verdict in set(Verdict) else None
    borne = verdict is not None and worse(verdict, evidence.verdict) == verdict
    return {
        "item": evidence.item == item,
        "phase": evidence.phase == stated.phase,
        "severity": evidence.severity == stated.severity,
        "summary": stated.summary.removeprefix(OUT_OF_DATE) == evidence.summary
        or stated.summary.startswith(f"{evidence.summary} (but "),
        "verdict": borne or verdict in _BETTER_THAN_EVIDENCE,
    }


def _read(release: Release, name: str) -> Any:
    """Return a file of the release; None if it has none, or one that its hash does not fit."""
    try:
        return release.read(name)
    except DAMAGE:
        return None


_SOURCES = TypeAdapter(list[SourceKept])


def dataset_difference(store: Store, manifest: Manifest) -> tuple[list[str], list[str]]:
    """Recompute the hash of the dataset that training read."""
    stated = manifest.dataset_file
    if stated is None:
        return [], [f"the manifest of {manifest.version} states no hash of its dataset"]
    found = hash_difference(store, stated.key, stated.sha256, stated.bytes)
    if found is None:
        return [], []
    for line, event in _events(store, manifest, Erased):
        _, after = event.files.get(stated.key, ("", ""))
        if after and hash_difference(store, stated.key, after) is None:
            return [], [f"the dataset of {manifest.version}: {_erasure(line, event)}"]
    return [f"the dataset of {manifest.version}: {found}"], []


T = TypeVar("T", bound=Erased | Withdrawn)


def _events(store: Store, manifest: Manifest, kind: type[T]) -> list[tuple[Line, T]]:
    """Return the events of a kind in the log of a version; none from a log that is damaged."""
    try:
        lines = read_log(store, manifest.name, manifest.version).lines()
    except DAMAGE:
        return []
    return [(line, line.event) for line in lines if isinstance(line.event, kind)]


def _erasure(line: Line, event: Erased) -> str:
    return (
        f"{event.by} erased {event.rows} rows about a person from the tables of this version at "
        f"{line.at}; it was trained with them"
    )


def check_sources(store: Store, manifest: Manifest) -> tuple[list[str], list[str]]:
    """Recompute the hashes of the files that the dataset was read from.

    Files of this machine and of buckets are read again. A file of a hub is not fetched.

    Returns differences, and what could not be compared.
    """
    differences, unchecked = [], []
    try:
        sources = _SOURCES.validate_python(manifest.dataset.get("sources") or [])
    except ValidationError as error:
        return [f"the sources of {manifest.version} are damaged: {error.errors()[0]['msg']}"], []
    erased = {name: pair for pair in _events(store, manifest, Erased) for name in pair[1].sources}
    for source in sources:
        try:
            found = _hash_of(source)
        except (TunelineError, OSError) as error:
            unchecked.append(f"{source.name}, a source of the dataset: {error}")
            continue
        if found is None:
            unchecked.append(
                f"{source.name}, a source of the dataset, can't be read from here; its hash is as "
                "it was declared"
            )
        elif found != source.sha256 and source.name in erased:
            unchecked.append(
                f"{source.name}, a source of the dataset, has changed since: "
                f"{_erasure(*erased[source.name])}"
            )
        elif found != source.sha256:
            differences.append(
                f"{source.name}, a source of the dataset, has changed since: its SHA-256 is "
                f"{found}, the manifest says {source.sha256}"
            )
    return differences, unchecked


def _hash_of(source: SourceKept) -> str | None:
    """Hash a source; None if it can't be read from here."""
    place = urlparse(source.origin or source.name)
    if place.scheme == "s3" and place.netloc:
        return S3Store(place.netloc, "").hash_foreign(place.path.lstrip("/"))
    path = Path(unquote(place.path) if place.scheme == "file" else source.name)
    # A relative path was meant from the folder in which the run was started.
    if place.scheme in ("", "file") and path.is_absolute() and path.is_file():
        return sha256_file(path)
    return None


# Hashing takes a core each; reading from a server waits more than it works.
_AT_ONCE = 8
# What lies in a version's folder beside the files that its manifest states.
_OWN_FILES = (MANIFEST_FILE, LOG_FILE, SIGNATURE, LINEAGE_EVIDENCE, *LINEAGE_STATEMENTS)


@dataclass
class Findings:
    """What `tuneline verify` found."""

    differences: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def add(self, found: tuple[list[str], list[str]]) -> None:
        """Take over differences, and what could not be compared."""
        self.differences += found[0]
        self.unchecked += found[1]


@dataclass(frozen=True)
class Version:
    """The place of a model version."""

    store: Store
    name: str
    version: str

    @classmethod
    def of(cls, manifest_uri: str) -> Version:
        """Take the address of a manifest apart."""
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
        """Read its manifest; return it and the hash of its bytes."""
        raw = self.store.get_bytes(manifest_key(self.name, self.version), sha256=sha256)
        return Manifest.model_validate_json(raw), hashlib.sha256(raw).hexdigest()


def verify(manifest_uri: str) -> list[str]:
    """Recompute everything that a manifest states; see `examine`."""
    return examine(manifest_uri).differences


def examine(manifest_uri: str, public_key: Path | None = None) -> Findings:
    """Recompute everything that a manifest states, and compare the model's pointer and logs.

    Without the public key (PEM file) a signature is not checked.
    """
    place = Version.of(manifest_uri)
    found = _version(place, public_key)
    found.differences += pointer_differences(place.store, place.name, place.version, whole=True)
    try:
        manifest, digest = place.manifest()
    except (*DAMAGE, ValueError):
        return found
    found.add(check_sources(place.store, manifest))
    found.add(lineage_differences(place.store, place.name, place.version, digest, public_key))
    return found


def version_differences(manifest_uri: str) -> list[str]:
    """Compare the files of a version with its manifest, and the dataset that it was made from."""
    return _version(Version.of(manifest_uri), None).differences


def served_differences(store: Store, name: str, version: str) -> list[str]:
    """Return what differs of a released version in what is served, and in its log and pointer.

    The dataset may be gone since: no engine reads it.
    """
    place = Version(store, name, version)
    try:
        manifest, _ = place.manifest()
    except NotThere:
        raise
    except (*DAMAGE, ValidationError) as error:
        return [first_line(error)]
    return [
        *_identity(place, manifest),
        *_files(place, manifest),
        *pointer_differences(store, name, version, whole=False),
    ]


class SignedBy:
    """Releases signed by one key: what a host that serves accepts.

    Small objects are read, no model: whoever loads its files compares them with the manifest.
    """

    def __init__(self, public_key: Path) -> None:
        require_usable(public_key)
        self._public_key = public_key

    def in_pointer(self, store: Store, name: str, version: str) -> list[str]:
        """Return how the pointer of a model differs from the release logs."""
        return pointer_differences(store, name, version, whole=False)

    def in_release(self, release: Release) -> list[str]:
        """Return how a version differs from one that its owner has released."""
        store, name, version = release.store, release.name, release.version
        place, manifest = Version(store, name, version), release.manifest
        found = [*_identity(place, manifest)]
        lines = read_log(store, name, version).lines()
        if not any(isinstance(line.event, Released) for line in lines):
            found.append("it was never released, so nothing says that it may be served")
        stated = (release.sha256, self._public_key)
        found += signature_difference(store, place.prefix, manifest, *stated)[0]
        return found + lineage_differences(store, name, version, *stated)[0]


def promotion_differences(manifest_uri: str, settings: GovernanceConfig) -> list[str]:
    """Return what differs of a version that is about to be released.

    The logs of the version and of the released one are compared, not those of all others. The
    files that the dataset was read from may have changed since: training has read the dataset.
    """
    place = Version.of(manifest_uri)
    public_key = Path(settings.public_key) if settings.public_key else None
    return [
        *_version(place, public_key).differences,
        *pointer_differences(place.store, place.name, place.version, whole=False),
    ]


def _version(place: Version, public_key: Path | None) -> Findings:
    """Compare files, evidence, dataset, parent and signature of a version with its manifest."""
    store = place.store
    try:
        manifest, digest = place.manifest()
    except NotThere:
        raise
    except DAMAGE as error:
        return Findings([str(error)])
    except ValidationError as error:
        uri = store.uri_of(manifest_key(place.name, place.version))
        return Findings([f"{uri} is not a manifest: {fault(error)}"])
    pruned = [pair for pair in _events(store, manifest, Withdrawn) if pair[1].pruned]
    found = Findings(
        [
            *_identity(place, manifest),
            *_files(place, manifest, pruned=bool(pruned)),
            *_files_too_many(place, manifest),
            *copy_differences(store, manifest),
            *_parent(place, manifest),
        ]
    )
    for line, event in pruned:
        why = f"{event.by} deleted them at {line.at}, {event.reason}"
        found.unchecked.append(f"the files that {manifest.version} served: {why}")
    found.add(dataset_difference(store, manifest))
    found.add(signature_difference(store, place.prefix, manifest, digest, public_key))
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


def _files(place: Version, manifest: Manifest, *, pruned: bool = False) -> Iterator[str]:
    """Recompute the hash of every file, those of a shared base in the store included.

    `pruned` leaves out what the version served, if it is gone.
    """
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
    if pruned:
        served = tuple(f"{place.prefix}/{name}" for name in SERVED)
        entries = [e for e in entries if not e[0].startswith(served) or place.store.exists(e[0])]
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
    except DAMAGE as error:
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


def _parent(place: Version, manifest: Manifest) -> Iterator[str]:
    """Compare the manifest of the release before, as long as it is kept."""
    parent = manifest.parent
    key = manifest_key(place.name, parent.version) if parent else ""
    if parent is not None and place.store.exists(key):
        found = hash_difference(place.store, key, parent.manifest_sha256)
        yield from [found] if found else []
