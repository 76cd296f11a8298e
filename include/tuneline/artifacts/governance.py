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
    """The place of the manifest of a run's model version: `manifest_ref.json`."""

    uri: str
    sha256: str
    version: str  # the id of the run


class ManifestFile(_Governed):
    """One file of a model version."""

    name: FileName  # path below the version's folder
    sha256: str
    bytes: int


class ManifestEvidence(_Governed):
    """The verdict of one item, as it stood when the manifest was written."""

    phase: str
    severity: str
    verdict: str
    summary: str
    because: str  # the limits that were broken, or that every limit holds
    file: str  # path below the version's folder


class DatasetFile(_Governed):
    """The dataset that training read."""

    key: str
    sha256: str
    bytes: int
    rows: int | None = None  # None if the step that wrote it did not count them


class StepEnvironment(_Governed):
    """An environment in which steps of the run were carried out."""

    python: str
    packages: dict[str, str]  # everything that is installed there
    device: str  # name of the accelerator, or `cpu`
    code: dict[str, Any] = {}  # commit, whether files differ from it, hash of the library
    image: str = ""  # that the steps' pods asked for; empty without pods
    image_id: str = ""  # with the image's digest; empty where nobody reported it
    steps: list[str]


class Parent(_Governed):
    """The release that was in service when the version was made."""

    version: FolderName
    manifest_sha256: str


# A value that `tuneline verify` compares with bytes, or one that is taken over as it was stated.
Basis = Literal["checked", "declared"]
PointerName = Literal["production", "staging"]


class PolicyException(_Governed):
    """A limit that the run set looser than the policy allows."""

    setting: str
    item: str
    critical: bool
    value: float | bool | str | list[str] | None
    allowed: float | bool | str | list[str] | None  # the loosest value of the policy
    reason: str | None = None  # why it was accepted; None if nobody did
    by: str | None = None
    approved_by: str | None = None


class ManifestPolicy(_Governed):
    """The policy of the platform under which the version was made."""

    version: int
    sha256: str  # of the file, which ships as `policy.yaml`
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
    defaults: dict[str, Any] = {}  # fields of each request that it was measured by
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
    """The end of the release log of a version."""

    lines: int
    sha256: str  # of the last line


class PointerMove(_Governed):
    """One move of the release pointer."""

    version: FolderName
    event: str  # `released` or `rolled_back`
    at: str
    sha256: str  # of the line that logs the move in the version's `release.jsonl`


class ReleasePointer(_Governed):
    """`models/<name>/production.json`, or `staging.json`: the version that was released to it."""

    schema_: Literal["tuneline/production/1", "tuneline/staging/1"] = Field(
        "tuneline/production/1", alias="schema"
    )
    name: FolderName
    version: FolderName
    manifest: str
    manifest_sha256: str
    release_sha256: str  # of the line of `release.jsonl` that logs this release
    previous_version: FolderName | None = None
    released_at: str
    history: list[PointerMove] = []  # oldest first; the last one is the release
    heads: dict[str, LogEnd] = {}  # the end of the release log of each version
    lines: list[str] = []  # the last ones in full, by which a promotion that died is completed

    @property
    def pointer(self) -> PointerName:
        """Which of the model's pointers it is."""
        return "staging" if self.schema_ == "tuneline/staging/1" else "production"


MANIFEST_REF = Document("lineage", "manifest_ref.json", ManifestRef)


class _Stated(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class Share(_Stated):
    """A share with its 95 % interval."""

    value: float
    lower: float
    upper: float


class Threshold(_Stated):
    """A limit of the mean log-probability per token, in nats."""

    tokens: int | None = None  # that the mean is taken over; None for the whole answer
    value: float | None = None  # answers below it are not trusted
    caught: Share | None = None  # share of the wrong answers; None if nothing was measured
    false_alarms: Share | None = None  # share of the right answers
    reason: str


class Calibration(_Stated):
    """`calibration.json`: the thresholds of a model on its engine."""

    schema_: str = Field("tuneline/calibration/1", alias="schema")
    candidate_sha256: str  # of the bytes that answered
    engine: str
    rows: int  # validation rows that were asked
    wrong: int
    max_tokens: int
    caught_share: float  # of wrong answers, that was to be caught
    false_alarm_share: float  # of right answers, that might be sent on
    whole: Threshold
    stream: Threshold  # of the beginning of a stream


class Confidence(_Stated):
    """The confidence of one answer."""

    row_id: str
    right: bool
    tokens: int
    whole: float | None  # mean log-probability in nats; None if the engine stated none
    beginning: float | None  # that of the tokens that a stream is judged by


CALIBRATION_FILE = "calibration.json"
CALIBRATION = Document("fallback", CALIBRATION_FILE, Calibration)
CONFIDENCES = Lines("fallback", "confidences.jsonl", Confidence)
# By `tuneline calibrate`; the item takes it over if it is of the same bytes and target.
BY_HAND = RunDocument(CALIBRATION_FILE, Calibration)


# Kind, name and licence of a thing.
Subject = tuple[str, str, str]


class AskedLicense(BaseModel):
    """A licence that a person decides on."""

    kind: str
    name: str
    license: str  # SPDX id or expression, or `NOASSERTION`
    why: str  # the rule that asks for a person
    text: str = ""

    @property
    def subject(self) -> Subject:
        """The thing and the licence that an answer counts for; it counts for no other."""
        return self.kind, self.name, self.license


class LicenseAnswer(BaseModel):
    """A person's answer."""

    asked: list[AskedLicense]
    decision: str  # `Approve` or `Reject`
    by: str  # as Airflow recorded it or as the system's login names the user
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
    """The image that a step's pod ran, by the status of the pod."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    image: str
    image_id: str  # in most clusters the name with the digest
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
