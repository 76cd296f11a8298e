"""`license_audit`: base model, dataset and shipped packages allow the intended use.

Runs before training: a model that may not be used need not be trained. The licence of the
base is read from the model itself, those of packages from their own metadata (PEP 639
expression first, then the licence field, then trove classifiers), each judged by the
table in `license_rules`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from tuneline.evidence import Evidence, measure
from tuneline.governance.licenses.rules import RULES, Use, judge, normalise
from tuneline.models import resolve
from tuneline.run import StepContext

# What a serving image needs at run time; their requirements ship with them.
SHIPPED_ROOTS = ("xllamacpp", "starlette", "uvicorn", "httpx", "pydantic", "PyYAML", "boto3")


@dataclass(frozen=True)
class Finding:
    """One licence and the rule that decided it."""

    kind: Literal["base_model", "dataset", "package"]
    name: str
    license: str
    read_from: str
    allowed: bool | None
    rule: str


def package_license(package: metadata.Distribution) -> tuple[str, str]:
    """A package's licence and where its metadata states it."""
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
    """The installed packages of a serving image: the roots and what they require."""
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
            # An extra's requirements ship only when somebody asks for the extra.
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
        base: name, licence and the place it was read from.
        datasets: address and declared licence of each source of the dataset.
        packages: what ships beside the model.
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


def run(ctx: StepContext) -> Evidence:
    """Audit the run's licences; the table goes to `licenses.csv`."""
    config = ctx.config
    use = config.governance.intended_use
    base = resolve(config.base_model)
    findings = audit(
        (config.base_model, base.license, base.license_source),
        [
            (address, config.data.license_of(address))
            for address in dict.fromkeys([*config.data.sources, *config.data.holdouts])
        ],
        shipped_packages(),
        use,
    )
    with (ctx.out / "licenses.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["kind", "name", "license", "read_from", "allowed", "rule"])
        for f in findings:
            writer.writerow([f.kind, f.name, f.license, f.read_from, f.allowed, f.rule])

    model = findings[0]
    data = [f for f in findings if f.kind == "dataset"]
    packages = [f for f in findings if f.kind == "package"]
    data_licenses = ", ".join(dict.fromkeys(f.license for f in data))
    data_allowed = all(f.allowed is True for f in data)
    refused = [f for f in packages if f.allowed is False and f.license != "NOASSERTION"]
    unknown = [f for f in packages if f.allowed is None or f.license == "NOASSERTION"]
    # Data without a stated licence is common on a laptop; in production it stops the run.
    undeclared: Literal["fail", "warn"] = (
        "fail"
        if config.profile == "production"
        or any(f.allowed is not True and f.license != "NOASSERTION" for f in data)
        else "warn"
    )
    summary = (
        f"base model {model.license}, dataset {data_licenses}, {len(packages)} shipped packages: "
        + (
            f"{use} use is allowed"
            if model.allowed and data_allowed and not refused
            else "refused or unclear: "
            + "; ".join(f"{f.name}: {f.rule}" for f in findings if f.allowed is not True)[:400]
        )
    )
    return ctx.conclude(
        summary,
        [
            measure("base_model_license", model.license, "SPDX"),
            measure("base_model_allowed", model.allowed is True, "flag", "==", True),
            measure("dataset_license", data_licenses, "SPDX"),
            measure("dataset_allowed", data_allowed, "flag", "==", True, on_breach=undeclared),
            measure("packages_audited", len(packages), "packages", ">=", 1),
            measure("packages_refused", len(refused), "packages", "==", 0),
            measure("packages_without_rule", len(unknown), "packages", "==", 0, on_breach="warn"),
        ],
        rows={"licenses.csv": len(findings)},
    )
