"""license_audit: base model, dataset and shipped packages allow the intended use.

It runs before training, since a model that may not be used need not be trained. The licence of
the base is read from the model, those of packages from their metadata (PEP 639 expression first,
then the licence field, then trove classifiers). The table in `models.license_rules` judges each.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from importlib import metadata
from typing import Literal

from tuneline.bases import base_of
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.models.license_rules import RULES, Use, judge, normalise
from tuneline.run import StepContext

# Packages that a serving image needs at run time; their requirements ship with them.
SHIPPED_ROOTS = ("xllamacpp", "starlette", "uvicorn", "httpx", "pydantic", "PyYAML", "boto3")


@dataclass(frozen=True)
class Finding:
    """One licence and the rule that decided it.

    Attributes:
        read_from: where the licence was stated.
        allowed: True if the use is allowed; None if the table has no rule.
    """

    kind: Literal["base_model", "dataset", "package"]
    name: str
    license: str
    read_from: str
    allowed: bool | None
    rule: str


def package_license(package: metadata.Distribution) -> tuple[str, str]:
    """Return a package's licence and where its metadata states it."""
    fields = package.metadata
    expressions = fields.get_all("License-Expression")
    if expressions:
        return expressions[0], "License-Expression"
    stated = (fields.get_all("License") or [""])[0].strip()
    # Some packages put the whole licence text there; its first line names it.
    named = normalise(stated.splitlines()[0] if stated else None)
    classifiers = [
        normalise(line.rpartition(" :: ")[2])
        for line in fields.get_all("Classifier") or []
        if line.startswith("License ::") and "OSI Approved" not in line.rpartition(" :: ")[2]
    ]
    if named in RULES and named != "NOASSERTION":
        return named, "License"
    if classifiers:
        return " AND ".join(classifiers), "classifier"
    if named != "NOASSERTION":
        return named[:60], "License"
    return "NOASSERTION", "no licence in the metadata"


def shipped_packages(roots: Iterable[str] = SHIPPED_ROOTS) -> list[metadata.Distribution]:
    """Return the installed packages of a serving image: the roots and what they require."""
    seen: dict[str, metadata.Distribution] = {}
    queue = list(roots)
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        if name in seen:
            continue
        try:
            seen[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for requirement in seen[name].requires or []:
            # The requirements of an extra ship only when the extra is asked for.
            if "extra ==" not in requirement:
                queue.append(re.split(r"[\s;<>=!~\[(]", requirement, maxsplit=1)[0])
    return [seen[name] for name in sorted(seen)]


def audit(
    base: tuple[str, str | None, str],
    datasets: Sequence[tuple[str, str | None]],
    packages: Iterable[metadata.Distribution],
    use: Use,
) -> list[Finding]:
    """Judge every licence.

    Args:
        base: name of the base model, its licence, and where that was stated.
        datasets: address and declared licence of each source of the dataset.
        packages: packages that ship beside the model.
        use: the intended use.
    """
    findings = []
    name, stated, source = base
    license_id = normalise(stated)
    findings.append(Finding("base_model", name, license_id, source, *judge(license_id, use)))
    for name, stated in datasets:
        license_id = normalise(stated)
        source = "the configuration" if stated else "data.license is not set"
        findings.append(Finding("dataset", name, license_id, source, *judge(license_id, use)))
    for package in packages:
        stated, source = package_license(package)
        name = f"{package.metadata['Name']} {package.version}"
        findings.append(Finding("package", name, stated, source, *judge(stated, use)))
    return findings


def judge_all(findings: Sequence[Finding], profile: str) -> list[Measurement]:
    """Judge an audit.

    Args:
        findings: the findings, that of the base model first.
        profile: `laptop`, where data without a stated licence warns, or `production`, where it
            fails.
    """
    model = findings[0]
    data = [f for f in findings if f.kind == "dataset"]
    packages = [f for f in findings if f.kind == "package"]
    data_allowed = all(f.allowed is True for f in data)
    stated = any(f.allowed is not True and f.license != "NOASSERTION" for f in data)
    breach: Literal["fail", "warn"] = "fail" if profile == "production" or stated else "warn"
    refused = sum(f.allowed is False and f.license != "NOASSERTION" for f in packages)
    unknown = sum(f.allowed is None or f.license == "NOASSERTION" for f in packages)
    return [
        measure("base_model_license", model.license, "SPDX"),
        measure("base_model_allowed", model.allowed is True, "flag", "==", True),
        measure("dataset_license", ", ".join(dict.fromkeys(f.license for f in data)), "SPDX"),
        measure("dataset_allowed", data_allowed, "flag", "==", True, on_breach=breach),
        measure("packages_audited", len(packages), "packages", ">=", 1),
        measure("packages_refused", refused, "packages", "==", 0),
        measure("packages_without_rule", unknown, "packages", "==", 0, on_breach="warn"),
    ]


def run(ctx: StepContext) -> Evidence:
    """Audit the run's licences; `licenses.csv` has the table."""
    config = ctx.config
    use = config.governance.intended_use
    base = base_of(ctx, weights=False)
    addresses = dict.fromkeys([*config.data.sources, *config.data.holdouts])
    findings = audit(
        (config.base_model, base.license, base.license_source),
        [(address, config.data.license_of(address)) for address in addresses],
        shipped_packages(),
        use,
    )
    with (ctx.out / "licenses.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(field.name for field in fields(Finding))
        writer.writerows(map(astuple, findings))
    checks = judge_all(findings, config.profile)
    found = {check.name: check for check in checks}
    decisive = ("base_model_allowed", "dataset_allowed", "packages_refused")
    allowed = all(found[name].ok for name in decisive)
    unclear = "; ".join(f"{f.name}: {f.rule}" for f in findings if f.allowed is not True)
    return ctx.conclude(
        f"base model {found['base_model_license'].value}, "
        f"dataset {found['dataset_license'].value}, "
        f"{found['packages_audited'].value} shipped packages: "
        + (f"{use} use is allowed" if allowed else f"refused or unclear: {unclear[:400]}"),
        checks,
        rows={"licenses.csv": len(findings)},
    )
