"""Files of the governance phase: the manifest of a model version and the release pointer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tuneline.artifacts.artifact import Document


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

    name: str
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


class Manifest(_Governed):
    """`manifest.json` of a model version: its files by hash, and what it was made from."""

    schema_: Literal["tuneline/manifest/1"] = Field("tuneline/manifest/1", alias="schema")
    created_at: str = ""
    name: str = ""
    version: str = ""
    run: dict[str, Any] = {}
    started_by: Any = None
    airflow_run: Any = None
    reason: str | None = None
    base_model: dict[str, Any] = {}
    dataset: dict[str, Any] = {}
    code: dict[str, Any] = {}
    hyperparameters: dict[str, Any] = {}
    engine: dict[str, Any] | None = None
    evidence: dict[str, ManifestEvidence] = {}
    previous_version: str | None = None
    files: list[ManifestFile]


class ReleasePointer(_Governed):
    """`models/<name>/production.json`: the version of a model that is released.

    Attributes:
        manifest: address of the version's manifest.
        release_sha256: hash of the line of `release.jsonl` that logs this release.
        released_at: RFC 3339.
    """

    schema_: Literal["tuneline/production/1"] = Field("tuneline/production/1", alias="schema")
    name: str
    version: str
    manifest: str
    manifest_sha256: str
    release_sha256: str
    previous_version: str | None = None
    released_at: str


MANIFEST_REF = Document("lineage", "manifest_ref.json", ManifestRef)
