"""license_audit: base model, data, detectors and shipped packages allow the intended use.

It runs before training. The rules in `licenses/rules.yaml` decide: allowed, refused, or a person
has to read the text. The packages are those of the engine's environment; where that is another
image than this step's, `build_engine` reads them there, and this item counts what it found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tuneline.artifacts.governance import AUDITED, LICENSE_ANSWERS, OPEN_LICENSES, OpenLicenses
from tuneline.artifacts.training import DETECTORS, DetectorLicense
from tuneline.bases import base_of
from tuneline.catalogue import Size
from tuneline.config import PipelineConfig
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.licenses.duties import write_duties
from tuneline.licenses.findings import (
    Finding,
    detector_licenses,
    findings_of,
    of_packages,
    package_measurements,
    with_answers,
    write_findings,
)
from tuneline.licenses.packages import installed
from tuneline.serving.engines import get_engine
from tuneline.step_context import StepContext

# As much of the open licences as a summary can name.
_SHOWN = 400


def runs_here(config: PipelineConfig) -> bool:
    """Return True if the engine runs in the environment of this process."""
    same_image = config.pods_of(Size.ENGINE).image == config.pods_of(Size.LIGHT).image
    engine = get_engine(config.deployment.engine)
    return same_image and engine.interpreter() is None and engine.missing() is None


def judge_all(findings: Sequence[Finding], profile: str) -> list[Measurement]:
    """Judge the findings on base model and data."""
    model = findings[0]
    data = [f for f in findings if f.kind == "dataset"]
    wrote = [f for f in findings if f.kind == "generator"]
    detect = [f for f in findings if f.kind == "detector"]
    accepted = sum(finding.open_but_accepted for finding in findings)
    return [
        measure("base_model_license", model.license, "SPDX"),
        _allowed("base_model_allowed", [model], profile),
        measure("dataset_license", _licenses(data), "SPDX"),
        _allowed("dataset_allowed", data, profile),
        *([_allowed("generators_allowed", wrote, profile)] if wrote else []),
        measure("detector_license", _licenses(detect) or "none", "SPDX"),
        *([_allowed("detectors_allowed", detect, profile)] if detect else []),
        measure("accepted_by_people", accepted, "licences"),
    ]


def _licenses(findings: Sequence[Finding]) -> str:
    return ", ".join(dict.fromkeys(finding.license for finding in findings))


def _allowed(name: str, findings: Sequence[Finding], profile: str) -> Measurement:
    refused = any(finding.decision == "refused" for finding in findings)
    breach: Literal["fail", "warn"] = "fail" if refused or profile == "production" else "warn"
    allowed = all(finding.allowed for finding in findings)
    return measure(name, allowed, "flag", "==", True, on_breach=breach)


def summarise(findings: Sequence[Finding], use: str, run_uri: str) -> str:
    """Return what was found, and what to do about licences that wait for a person."""
    stated = [f"base model {findings[0].license}"]
    stated.append(f"dataset {_licenses([f for f in findings if f.kind == 'dataset'])}")
    detectors = [f for f in findings if f.kind == "detector"]
    stated += [f"{f.name} finds personal data, {f.license}" for f in detectors]
    packages = sum(f.kind == "package" for f in findings)
    stated.append(
        f"{packages} packages of the engine's environment"
        if packages
        else "the engine's packages can't be seen here; build_engine reads them"
    )
    refused = [f for f in findings if f.decision == "refused"]
    waiting = [f for f in findings if f.open]
    said = [f"{use} use is allowed"] if not refused and not waiting else []
    if refused:
        said.append("refused: " + _listed(refused))
    if waiting:
        said.append(
            f"a person has to decide: {_listed(waiting)}; `tuneline licenses show {run_uri}` has "
            "the texts, `tuneline licenses accept` records the decision, then run this step again"
        )
    accepted = [f for f in findings if f.open_but_accepted]
    said += [f"{f.name} ({f.license}) accepted by {f.accepted_by}: {f.reason}" for f in accepted]
    return f"{', '.join(stated)}: {'; '.join(said)}"


def _listed(findings: Sequence[Finding]) -> str:
    text = "; ".join(f"{f.name}: {f.rule}" for f in findings)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _detectors(ctx: StepContext) -> list[DetectorLicense]:
    """Return the licences of the models that find personal data, as fetch_base noted them."""
    noted = DETECTORS.find(ctx.run)
    return detector_licenses(ctx.config) if noted is None else noted.models


def run(ctx: StepContext) -> Evidence:
    """Audit the run's licences; `licenses.csv` has the table."""
    config = ctx.config
    base = base_of(ctx, weights=False)
    if ctx.run.store.exists(LICENSE_ANSWERS.key(ctx.run)):
        LICENSE_ANSWERS.note(ctx)
    findings = with_answers(ctx.run, findings_of(config, base, _detectors(ctx)))
    packages: list[Finding] = []
    if runs_here(config):
        found = installed(stated=config.governance.package_licenses)
        packages = with_answers(ctx.run, of_packages(found.packages, config))
    shipped = [finding for finding in findings if finding.kind != "detector"]
    duties = write_duties(ctx, shipped, base.path)
    every = [*findings, *packages]
    write_findings(AUDITED.path(ctx), every)
    OPEN_LICENSES.write(ctx, OpenLicenses(asked=[f.asked for f in every if f.open]))
    return ctx.conclude(
        summarise(every, config.governance.intended_use, ctx.run.uri),
        [
            *judge_all(findings, config.profile),
            *(package_measurements(packages) if packages else []),
            measure("packages_seen", bool(packages), "flag"),
            measure("duties_for_people", duties, "duties"),
        ],
        rows={AUDITED.name: len(every)},
    )
