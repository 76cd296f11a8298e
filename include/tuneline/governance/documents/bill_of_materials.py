"""The bill of materials of a release: CycloneDX 1.7 with a machine-learning model (ML-BOM).

cyclonedx-python-lib has no model card and no data of a component as of 11.12, so `modelCard` and
`data` are added to what it wrote; tests validate the whole against the schema of CycloneDX 1.7.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType, Pedigree
from cyclonedx.model.license import License, LicenseAcknowledgement
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot7
from packageurl import PackageURL

from tuneline import __version__
from tuneline.evidence import Verdict
from tuneline.governance.documents.facts import Facts, Metric, metrics

_DATASET = "dataset"
_SHORTCOMINGS = (Verdict.FAIL, Verdict.NOT_RUN, Verdict.INCONCLUSIVE, Verdict.WARN, Verdict.WAIVED)


def bill_of_materials(facts: Facts) -> bytes:
    """Return the bill of materials of a release, in JSON."""
    model, base, dataset = _model(facts), _base(facts), _dataset(facts)
    parts = [base, dataset, *_packages(facts)]
    # The same release has the same number: a step that is run again writes the same bytes.
    number = uuid5(NAMESPACE_URL, f"{facts.release.uri}#{sorted(facts.model_files.items())}")
    bom = Bom(components=parts, serial_number=number, metadata=_metadata(facts, model))
    bom.register_dependency(model, parts)
    document = json.loads(JsonV1Dot7(bom).output_as_string())
    document["metadata"]["component"]["modelCard"] = _model_card(facts)
    for component in document["components"]:
        if component["bom-ref"] == _DATASET:
            component["data"] = [_data(facts)]
    return json.dumps(document, indent=1, ensure_ascii=False).encode()


def _metadata(facts: Facts, model: Component) -> BomMetaData:
    tool = Component(name="tuneline", version=__version__, type=ComponentType.APPLICATION)
    return BomMetaData(
        component=model,
        tools=ToolRepository(components=[tool]),
        timestamp=datetime.fromisoformat(facts.finished_at) if facts.finished_at else None,
        properties=[Property(name="tuneline:manifest", value=facts.release.uri)],
    )


def _model(facts: Facts) -> Component:
    manifest, files = facts.release.manifest, facts.model_files
    ancestor = Component(
        name=str(manifest.base_model.get("uri", "")),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="ancestor",
    )
    return Component(
        name=manifest.name,
        version=manifest.version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="model",
        # A model of several files has no hash of its own.
        hashes=[_sha256(sha256) for sha256 in files.values()] if len(files) == 1 else [],
        licenses=_licenses(facts.config.get("governance", {}).get("model_license")),
        components=[
            Component(
                name=name, type=ComponentType.FILE, bom_ref=f"file:{name}", hashes=[_sha256(sha256)]
            )
            for name, sha256 in sorted(files.items())
        ],
        pedigree=Pedigree(ancestors=[ancestor]),
    )


def _base(facts: Facts) -> Component:
    base = facts.release.manifest.base_model
    return Component(
        name=str(base.get("uri", "")),
        version=base.get("revision"),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="base-model",
        licenses=_licenses(base.get("license")),
        properties=[Property(name="tuneline:digest-of-file-hashes", value=base.get("digest"))],
    )


def _dataset(facts: Facts) -> Component:
    file, declared = facts.release.manifest.dataset_file, facts.dataset
    licences = {source.get("license") for source in declared.get("sources") or []}
    return Component(
        name=str(declared.get("name") or facts.release.manifest.name),
        version=declared.get("version"),
        type=ComponentType.DATA,
        bom_ref=_DATASET,
        hashes=[_sha256(file.sha256)] if file else [],
        # Of several licences none is that of the whole: the sources below have their own.
        licenses=_licenses(licences.pop()) if len(licences) == 1 else [],
        components=[
            Component(
                name=source["name"],
                type=ComponentType.DATA,
                bom_ref=f"source-{number}",
                hashes=[_sha256(source["sha256"])],
                licenses=_licenses(source.get("license")),
            )
            for number, source in enumerate(declared.get("sources") or [], 1)
        ],
    )


def _packages(facts: Facts) -> Iterable[Component]:
    """Yield the packages whose licences the audit read: those of the environment that serves."""
    for line in facts.licenses:
        if line.get("kind") != "package":
            continue
        name, _, version = line["name"].rpartition(" ")
        address = purl(name, version)
        yield Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            bom_ref=address.to_string(),
            purl=address,
            licenses=_licenses(line.get("license")),
            properties=[Property(name="tuneline:licence-read-from", value=line.get("read_from"))],
        )


def _licenses(stated: str | None) -> list[License]:
    """Return a licence as its publisher declared it; none for none."""
    if not stated or stated == "NOASSERTION":
        return []
    declared = LicenseAcknowledgement.DECLARED
    return [LicenseFactory().make_from_string(stated, license_acknowledgement=declared)]


def _sha256(content: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=content)


def _model_card(facts: Facts) -> dict[str, Any]:
    card: dict[str, Any] = {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "text-generation",
            "datasets": [{"ref": _DATASET}],
        },
        "considerations": {
            "technicalLimitations": [
                f"{one.item.id} ({one.item.severity}) {one.verdict}: {one.because}"
                for one in facts.with_verdict(*_SHORTCOMINGS)
            ]
        },
    }
    measured = [_performance(metric) for metric in metrics(facts)]
    if measured:
        card["quantitativeAnalysis"] = {"performanceMetrics": measured}
    return card


def _performance(metric: Metric) -> dict[str, Any]:
    found: dict[str, Any] = {"type": metric.name, "value": str(metric.value)}
    if metric.slice:
        found["slice"] = metric.slice
    if metric.lower is not None and metric.upper is not None:
        bounds = {"lowerBound": str(metric.lower), "upperBound": str(metric.upper)}
        found["confidenceInterval"] = bounds
    return found


def _data(facts: Facts) -> dict[str, Any]:
    rows = {"rows": facts.dataset.get("rows"), **(facts.dataset.get("splits") or {})}
    return {
        "type": "dataset",
        "name": str(facts.dataset.get("name") or facts.release.manifest.name),
        "contents": {
            "properties": [
                {"name": f"tuneline:rows:{name}", "value": str(count)}
                for name, count in rows.items()
                if count is not None
            ]
        },
    }


def purl(name: str, version: str) -> PackageURL:
    """Return the package URL of a version of a Python package."""
    return PackageURL("pypi", None, name.replace("_", "-").lower(), version)
