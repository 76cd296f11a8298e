"""Files of the governance phase: the manifest of a model version and the release pointer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tuneline.artifacts.artifact import Document, FileName, FolderName


class _Governed(BaseModel):
    # Documents of older and newer versions stay readable.
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class ManifestRef(_Governed):
    """The place of the manifest of a run's model version: `manifest_ref.json`.

    Attributes:
        uri: address of `manifest.json`.
        sha256: hex SHA-256 of its bytes.
        version: the model version, which is the id of the run.
    """

    uri: str
    sha256: str
    version: str


class ManifestFile(_Governed):
    """One file of a model version.

    Attributes:
        name: path below the version's folder.
        sha256: hex SHA-256 of its bytes.
        bytes: size.
    """

    name: FileName
    sha256: str
    bytes: int


class ManifestEvidence(_Governed):
    """The verdict of one item, as it stood when the manifest was written.

    Attributes:
        because: the limits that were broken, or that every limit holds.
        file: path of the evidence below the version's folder.
    """

    phase: str
    severity: str
    verdict: str
    summary: str
    because: str
    file: str


class DatasetFile(_Governed):
    """The dataset that training read.

    Attributes:
        key: its key in the store of the release.
        sha256: hex SHA-256 of its bytes.
        bytes: size.
        rows: number of rows, where the step that wrote it counted them.
    """

    key: str
    sha256: str
    bytes: int
    rows: int | None = None


class StepEnvironment(_Governed):
    """An environment in which steps of the run were carried out.

    Attributes:
        python: version of Python.
        packages: version by package, of everything that is installed there.
        device: name of the accelerator, or `cpu`.
        code: commit, whether files differ from it, and hash of the library.
        image: the image that the steps' pods asked for; empty without pods.
        image_id: what the cluster ran, with the image's digest; empty where nobody reported it.
        steps: the items and helper steps that ran in it.
    """

    python: str
    packages: dict[str, str]
    device: str
    code: dict[str, Any] = {}
    image: str = ""
    image_id: str = ""
    steps: list[str]


class Parent(_Governed):
    """The release that was in service when the version was made.

    Attributes:
        version: its version.
        manifest_sha256: hash of its manifest.
    """

    version: FolderName
    manifest_sha256: str


# A value that `tuneline verify` compares with bytes, or one that is taken over as it was stated.
Basis = Literal["checked", "declared"]


class PolicyException(_Governed):
    """A limit that the run set looser than the policy allows.

    Attributes:
        setting: its path in the configuration.
        item: the item that it decides.
        critical: True if that item is critical.
        value: the run's value.
        allowed: the loosest value of the policy.
        reason: why it was accepted; None if nobody did.
        by: who started the run with the waiver.
        approved_by: who approved it, of a critical item.
    """

    setting: str
    item: str
    critical: bool
    value: float | bool | str | None
    allowed: float | bool | str | None
    reason: str | None = None
    by: str | None = None
    approved_by: str | None = None


class ManifestPolicy(_Governed):
    """The policy of the platform under which the version was made.

    Attributes:
        version: the version that its file states.
        sha256: hash of the file, which ships as `policy.yaml`.
        looser: the limits that the run set looser.
    """

    version: int
    sha256: str
    looser: list[PolicyException] = []


class Manifest(_Governed):
    """`manifest.json` of a model version: its files by hash, and what it was made from.

    `basis` says of each field, by its path, whether it is checked or declared; a path holds for
    all that lies below it, unless a longer one does.
    """

    schema_: Literal["tuneline/manifest/1"] = Field("tuneline/manifest/1", alias="schema")
    created_at: str = ""
    name: FolderName = ""
    version: FolderName = ""
    run: dict[str, Any] = {}
    started_by: Any = None
    airflow_run: Any = None
    reason: str | None = None
    base_model: dict[str, Any] = {}
    dataset: dict[str, Any] = {}
    dataset_file: DatasetFile | None = None
    code: dict[str, Any] = {}
    hyperparameters: dict[str, Any] = {}
    engine: dict[str, Any] | None = None
    evidence: dict[str, ManifestEvidence] = {}
    environments: list[StepEnvironment] = []
    seeds: dict[str, Any] = {}
    previous_version: FolderName | None = None
    parent: Parent | None = None
    policy: ManifestPolicy | None = None
    signature: dict[str, str] | None = None
    basis: dict[str, Basis] = {}
    files: list[ManifestFile]


class LogEnd(_Governed):
    """The end of the release log of a version.

    Attributes:
        lines: number of its lines.
        sha256: hash of the last one.
    """

    lines: int
    sha256: str


class PointerMove(_Governed):
    """One move of the release pointer.

    Attributes:
        version: the version that it moved to.
        event: `released` or `rolled_back`.
        at: RFC 3339.
        sha256: hash of the line that logs the move in the version's `release.jsonl`.
    """

    version: FolderName
    event: str
    at: str
    sha256: str


class ReleasePointer(_Governed):
    """`models/<name>/production.json`: the version of a model that is released.

    Attributes:
        manifest: address of the version's manifest.
        release_sha256: hash of the line of `release.jsonl` that logs this release.
        released_at: RFC 3339.
        history: every move of the pointer, oldest first; the last one is the release.
        heads: the end of the release log of each version.
        lines: the lines that were logged last, in full. A promotion that dies after it has
            written the pointer is completed from them.
    """

    schema_: Literal["tuneline/production/1"] = Field("tuneline/production/1", alias="schema")
    name: FolderName
    version: FolderName
    manifest: str
    manifest_sha256: str
    release_sha256: str
    previous_version: FolderName | None = None
    released_at: str
    history: list[PointerMove] = []
    heads: dict[str, LogEnd] = {}
    lines: list[str] = []


MANIFEST_REF = Document("lineage", "manifest_ref.json", ManifestRef)
