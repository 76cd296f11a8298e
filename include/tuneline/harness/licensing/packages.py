"""The packages of the environment in which the shipped engine runs, judged by their licences."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from tuneline.artifacts.licenses import ENGINE_PACKAGES, OPEN_PACKAGES, OpenLicenses
from tuneline.errors import TunelineError
from tuneline.evidence import Measurement, measure
from tuneline.harness.licensing.findings import COLUMNS, Finding, of_packages, with_answers
from tuneline.models.package_licenses import Environment, installed
from tuneline.serving.engines.engine import Engine
from tuneline.step_context import StepContext

# Measurements that begin so count for the item license_audit, whichever step made them.
ITEM = "license_audit."


def package_measurements(findings: Sequence[Finding], prefix: str = "") -> list[Measurement]:
    """Judge the packages of an environment.

    Args:
        findings: one for each package.
        prefix: what the names of the measurements begin with.
    """
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


def audit_engine_packages(ctx: StepContext, engine: Engine) -> tuple[list[Measurement], str]:
    """Judge the packages of the environment in which the engine has just answered.

    Args:
        ctx: the step that started it; it leaves `packages.csv`.
        engine: the engine.

    Returns:
        Measurements of the item license_audit, and a sentence on what was seen.
    """
    try:
        found = _environment(ctx, engine)
    except TunelineError as error:
        seen = measure(f"{ITEM}packages_seen", False, "flag", "==", True, on_breach="warn")
        return [seen], f"the packages beside it can't be seen: {error}"
    findings = with_answers(ctx.run, of_packages(found.packages, ctx.config))
    write_findings(ENGINE_PACKAGES.path(ctx), findings)
    OPEN_PACKAGES.write(ctx, OpenLicenses(asked=[f.asked for f in findings if f.open]))
    seen = measure(f"{ITEM}packages_seen", True, "flag", "==", True, on_breach="warn")
    said = f"{len(findings)} packages lie beside it in {found.prefix}"
    return [seen, *package_measurements(findings, ITEM)], said


def _environment(ctx: StepContext, engine: Engine) -> Environment:
    """Return the packages of the engine's environment.

    Raises:
        TunelineError: if they can't be listed, or the engine is not among them, which then are
            those of another environment.
    """
    found = installed(engine.interpreter(), ctx.config.governance.package_licenses)
    package = engine.version().partition(" ")[0]
    if not found.has(package):
        raise TunelineError(f"{package} is not among the packages of {found.prefix}")
    return found
