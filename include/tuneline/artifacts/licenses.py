"""Questions to people about licences, their answers, and the packages of the engine."""

from __future__ import annotations

from pydantic import BaseModel

from tuneline.artifacts.artifact import Artifact, Document, RunDocument

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
