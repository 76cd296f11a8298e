"""Files of the governance phase: the manifest of a model version and the release pointer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from tuneline.artifacts.artifact import Artifact, Document, FileName, FolderName, Lines, RunDocument
from tuneline.environment import all_packages, hash_packages
from tuneline.run import Run


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
        rows: number of rows, where the step that wrote it counted them.
    """

    key: str
    sha256: str
    bytes: int
    rows: int | None = None


class StepEnvironment(_Governed):
    """An environment in which steps of the run were carried out.

    Attributes:
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


class _Stated(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class Share(_Stated):
    """A share with its 95 % interval."""

    value: float
    lower: float
    upper: float


class Threshold(_Stated):
    """A limit of the mean log-probability per token, in nats.

    Attributes:
        tokens: the first tokens that the mean is taken over; None for the whole answer.
        value: answers below it are not trusted; None if none is set.
        caught: share of the wrong answers below it; None if nothing could be measured.
        false_alarms: share of the right answers below it, expected of the next ones.
    """

    tokens: int | None = None
    value: float | None = None
    caught: Share | None = None
    false_alarms: Share | None = None
    reason: str


class Calibration(_Stated):
    """`calibration.json`: the thresholds of a model on its engine.

    Attributes:
        candidate_sha256: hash of the bytes that answered.
        engine: the engine and its version.
        rows: validation rows that were asked.
        wrong: how many were answered wrongly.
        max_tokens: limit of an answer's length.
        caught_share: the share of wrong answers that was to be caught.
        false_alarm_share: the share of right answers that might be sent on.
        whole: the threshold of whole answers.
        stream: the threshold of the beginning of a stream.
    """

    schema_: str = Field("tuneline/calibration/1", alias="schema")
    candidate_sha256: str
    engine: str
    rows: int
    wrong: int
    max_tokens: int
    caught_share: float
    false_alarm_share: float
    whole: Threshold
    stream: Threshold


class Confidence(_Stated):
    """The confidence of one answer.

    Attributes:
        right: whether the answer is right.
        tokens: number of its tokens.
        whole: mean log-probability of its tokens, in nats; None if the engine stated none.
        beginning: that of the tokens that a stream is judged by.
    """

    row_id: str
    right: bool
    tokens: int
    whole: float | None
    beginning: float | None


CALIBRATION_FILE = "calibration.json"
CALIBRATION = Document("fallback", CALIBRATION_FILE, Calibration)
CONFIDENCES = Lines("fallback", "confidences.jsonl", Confidence)
# By `tuneline calibrate`; the item takes it over if it is of the same bytes and target.
BY_HAND = RunDocument(CALIBRATION_FILE, Calibration)


# Kind, name and licence of a thing.
Subject = tuple[str, str, str]


class AskedLicense(BaseModel):
    """A licence that a person decides on.

    Attributes:
        kind: `base_model`, `detector`, `dataset`, `generator` or `package`.
        name: what is under the licence.
        license: its SPDX id or expression, or `NOASSERTION`.
        why: the rule that asks for a person.
        text: address of the licence's text, empty where none is known.
    """

    kind: str
    name: str
    license: str
    why: str
    text: str = ""

    @property
    def subject(self) -> Subject:
        """The thing and the licence that an answer counts for; it counts for no other."""
        return self.kind, self.name, self.license


class LicenseAnswer(BaseModel):
    """A person's answer.

    Attributes:
        asked: the licences that were shown.
        decision: `Approve` or `Reject`.
        by: who answered, as Airflow recorded it or as the system's login names the user.
        reason: why, in the person's words.
        at: RFC 3339.
    """

    asked: list[AskedLicense]
    decision: str
    by: str
    reason: str
    at: str


class LicenseAnswers(BaseModel):
    """The answers, oldest first."""

    answers: list[LicenseAnswer] = []


class OpenLicenses(BaseModel):
    """`open_licenses.json`: the licences that nobody has decided on yet."""

    asked: list[AskedLicense] = []


LICENSE_ANSWERS = RunDocument("license_answers.json", LicenseAnswers)
OPEN_LICENSES = Document("license_audit", "open_licenses.json", OpenLicenses)
# One line for each licence that was judged.
AUDITED = Artifact("license_audit", "licenses.csv")
NOTICE = Artifact("license_audit", "NOTICE")
LICENSES = Artifact("license_audit", "LICENSES.md")
# Folder for the licence files of the base model.
LICENSE_TEXTS = "licenses"
# Packages of the environment in which the engine answered, and those of them that are open.
ENGINE_PACKAGES = Artifact("build_engine", "packages.csv")
OPEN_PACKAGES = Document("build_engine", "open_licenses.json", OpenLicenses)


class Packages(RootModel[dict[str, str]]):
    """Version by package, of everything that a process could import."""


class PodImage(BaseModel):
    """The image that a step's pod ran, by the status of the pod.

    Attributes:
        image: its name, as the pod asked for it.
        image_id: what the cluster ran, in most clusters the name with the digest.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    image: str
    image_id: str
    pod: str = ""


def image_of(step: str) -> RunDocument[PodImage]:
    """Return the document that says which image the pod of a step ran."""
    return RunDocument(f"images/{step}.json", PodImage)


def keep_packages(run: Run, environment: Mapping[str, Any]) -> None:
    """Keep the packages of this process in the run, if they are those of an environment."""
    digest = environment.get("packages_sha256")
    installed = all_packages()
    if digest != hash_packages(installed):
        return
    key = _packages(str(digest)).key(run)
    if not run.store.exists(key):
        run.store.put_bytes(key, json.dumps(installed).encode())


def find_packages(run: Run, environment: Mapping[str, Any]) -> dict[str, str]:
    """Return every package of an environment; those of its evidence where no more are known."""
    found = _packages(str(environment.get("packages_sha256"))).find(run)
    stated: dict[str, str] = environment.get("packages", {})
    return stated if found is None else found.root


def _packages(digest: str) -> RunDocument[Packages]:
    return RunDocument(f"environments/{digest}.json", Packages)
