"""The licences of a run and of the engine's packages, each with the rule or person that decided."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tuneline.artifacts.governance import (
    ENGINE_PACKAGES,
    OPEN_LICENSES,
    OPEN_PACKAGES,
    AskedLicense,
    OpenLicenses,
)
from tuneline.artifacts.training import BASE, DETECTORS, DetectorLicense, StoredBase
from tuneline.config import PipelineConfig
from tuneline.errors import TunelineError, UserError
from tuneline.evidence import Measurement, measure
from tuneline.licenses.answers import acceptances
from tuneline.licenses.packages import PackageLicense, installed
from tuneline.licenses.rules import (
    Circumstances,
    Decision,
    Role,
    Rule,
    circumstances_of,
    generators_of,
    judge,
    normalise,
)
from tuneline.models import BaseModel
from tuneline.models.resolver import classifier_license
from tuneline.run import Run
from tuneline.step_context import StepContext
from tuneline.store import local_file

Kind = Literal["base_model", "detector", "dataset", "generator", "package"]
_ROLES: dict[Kind, Role] = {
    "base_model": "model",
    "detector": "package",
    "dataset": "data",
    "generator": "generator",
    "package": "package",
}


@dataclass(frozen=True)
class Finding:
    """One licence and what decided on it."""

    kind: Kind
    name: str
    license: str
    read_from: str  # where the licence was stated
    decision: Decision
    rule: str
    text: str  # address of the licence's text
    accepted_by: str = ""  # where the rules ask for a person
    reason: str = ""
    rules: Mapping[str, Rule] = field(default_factory=dict, repr=False)  # those that bind, by id

    @property
    def allowed(self) -> bool:
        """True if the rules allow the use, or a person accepted what they leave open."""
        return self.decision == "allowed" or self.open_but_accepted

    @property
    def open(self) -> bool:
        """True if it waits for a person."""
        return self.decision == "person" and not self.accepted_by

    @property
    def open_but_accepted(self) -> bool:
        """True if a person accepted it; what the rules refuse can only be waived."""
        return self.decision == "person" and bool(self.accepted_by)

    @property
    def asked(self) -> AskedLicense:
        """The question about it."""
        return AskedLicense(
            kind=self.kind, name=self.name, license=self.license, why=self.rule, text=self.text
        )

    @property
    def row(self) -> list[str]:
        """Its row in `licenses.csv`."""
        return [str(getattr(self, name)) for name in COLUMNS]


COLUMNS = "kind name license read_from decision rule text accepted_by reason".split()


def findings_of(
    config: PipelineConfig, base: BaseModel | StoredBase, detectors: Iterable[DetectorLicense] = ()
) -> list[Finding]:
    """Judge the base model, the dataset's sources, and the models that wrote or scrubbed rows."""
    circumstances = circumstances_of(config, base.license, base.architecture)
    found = [
        _finding("base_model", config.base_model, base.license, base.license_source, circumstances)
    ]
    if not found[0].text:
        found[0] = replace(found[0], text=_page(config.base_model))
    addresses = list(dict.fromkeys([*config.data.sources, *config.data.holdouts]))
    for address in addresses:
        stated = config.data.license_of(address)
        source = "the configuration" if stated else "data.license is not set"
        found.append(_finding("dataset", address, stated, source, circumstances))
    for address, stated in generators_of(config, addresses).items():
        found.append(
            _finding("generator", address, stated, "governance.generated_by", circumstances)
        )
    for name, stated in answering_models(addresses):
        found.append(_finding("generator", name, stated, "answers in production", circumstances))
    # They are used and not handed on: nothing of them is in a release.
    own_use = replace(
        circumstances, use="research" if circumstances.use == "research" else "internal"
    )
    for detector in detectors:
        named = (detector.address, detector.license, detector.license_source)
        found.append(_finding("detector", *named, own_use))
    return found


# As `governance.production.reviewed` names the rows that people accepted or corrected.
_REVIEWED = re.compile(r"/reviewed/[^/]+/[0-9a-f]{64}\.jsonl$")


def answering_models(addresses: Iterable[str]) -> list[tuple[str, str | None]]:
    """Return the models whose answers reviewed rows of production are, with their licences."""
    found: dict[tuple[str, str | None], None] = {}
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        for address in filter(_REVIEWED.search, addresses):
            path = local_file(address, Path(scratch))
            if not path.is_file():
                raise UserError(f"data.source: {address} does not exist")
            with path.open(encoding="utf-8") as lines:
                for row in map(json.loads, lines):
                    found[row.get("served_by") or "unknown", row.get("license")] = None
    return list(found)


def detector_licenses(config: PipelineConfig) -> list[DetectorLicense]:
    """Return the licences of the models that find personal data; no weights are fetched."""
    found = []
    for uri in config.data.pii_models:
        license_id, source = classifier_license(uri, "data.pii_ner")
        found.append(DetectorLicense(address=uri, license=license_id, license_source=source))
    return found


def _page(uri: str) -> str:
    """Return the page of a model on the hub, empty for models from elsewhere."""
    scheme, _, rest = uri.partition("://")
    return f"https://huggingface.co/{rest.partition('@')[0]}" if scheme == "hf" else ""


def of_packages(packages: Iterable[PackageLicense], config: PipelineConfig) -> list[Finding]:
    """Judge the packages of an environment."""
    circumstances = circumstances_of(config, None, "")
    return [
        _finding("package", f"{p.name} {p.version}", p.license, p.read_from, circumstances)
        for p in packages
    ]


def _finding(
    kind: Kind, name: str, stated: str | None, read_from: str, circumstances: Circumstances
) -> Finding:
    license_id = normalise(stated)
    found = judge(license_id, circumstances, _ROLES[kind])
    decided = found.decision, found.reason, found.source
    return Finding(kind, name, license_id, read_from, *decided, rules=found.rules)


def with_answers(run: Run, findings: Iterable[Finding]) -> list[Finding]:
    """Return findings with the answers that people gave to them, now or for what is released."""
    answers = acceptances(run)

    def answered(finding: Finding) -> Finding:
        answer = answers.get(finding.asked.subject)
        if answer is None or finding.decision != "person":
            return finding
        return replace(finding, accepted_by=answer.by, reason=answer.reason)

    return [answered(finding) for finding in findings]


def open_of_run(run: Run) -> list[AskedLicense]:
    """Return the licences of base model and data that wait for a person."""
    base = BASE.find(run)
    if base is None:
        return (OPEN_LICENSES.find(run) or OpenLicenses()).asked
    detectors = DETECTORS.find(run)
    findings = findings_of(run.config, base, detectors.models if detectors else ())
    return [f.asked for f in with_answers(run, findings) if f.open]


def open_packages_of_run(run: Run) -> list[AskedLicense]:
    """Return the packages that wait for a person, as audit and engine build found them."""
    answered = acceptances(run)
    stated = [document.find(run) or OpenLicenses() for document in (OPEN_LICENSES, OPEN_PACKAGES)]
    found = {a.subject: a for listed in stated for a in listed.asked if a.kind == "package"}
    return [asked for subject, asked in found.items() if subject not in answered]


# Measurements that begin so count for the item license_audit, whichever step made them.
ITEM = "license_audit."


def package_measurements(findings: Sequence[Finding], prefix: str = "") -> list[Measurement]:
    """Judge the packages of an environment."""
    refused = sum(finding.decision == "refused" for finding in findings)
    unclear = sum(finding.open for finding in findings)
    return [
        measure(f"{prefix}packages_audited", len(findings), "packages", ">=", 1),
        measure(f"{prefix}packages_refused", refused, "packages", "==", 0),
        measure(f"{prefix}packages_without_rule", unclear, "packages", "==", 0, on_breach="warn"),
    ]


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Write findings as CSV, a row for each."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        writer.writerows(finding.row for finding in findings)


def audit_engine_packages(
    ctx: StepContext, python: str | None, package: str
) -> tuple[list[Measurement], str]:
    """Judge the packages of the environment in which the engine has just answered."""
    try:
        found = installed(python, ctx.config.governance.package_licenses)
        if not found.has(package):
            # They are those of another environment.
            raise TunelineError(f"{package} is not among the packages of {found.prefix}")
    except TunelineError as error:
        seen = measure(f"{ITEM}packages_seen", False, "flag", "==", True, on_breach="warn")
        return [seen], f"the packages of its environment can't be seen: {error}"
    findings = with_answers(ctx.run, of_packages(found.packages, ctx.config))
    write_findings(ENGINE_PACKAGES.path(ctx), findings)
    OPEN_PACKAGES.write(ctx, OpenLicenses(asked=[f.asked for f in findings if f.open]))
    seen = measure(f"{ITEM}packages_seen", True, "flag", "==", True, on_breach="warn")
    said = f"{len(findings)} packages of its environment are in {found.prefix}"
    return [seen, *package_measurements(findings, ITEM)], said
