"""The verdicts as in-toto statements, and the run as SLSA provenance.

https://in-toto.io/attestation/test-result/v0.1 and https://slsa.dev/provenance/v1. The subject of
every statement is the model's bytes; that of `lineage` names the manifest too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement

from tuneline import CONTRACT_VERSION, __version__
from tuneline.artifacts.artifact import Artifact
from tuneline.artifacts.governance import Manifest, ManifestFile, ManifestRef
from tuneline.artifacts.releases import (
    CONFIG_FILE,
    LINEAGE_EVIDENCE,
    LINEAGE_STATEMENTS,
    MANIFEST_FILE,
    Release,
    manifest_key,
    model_prefix,
)
from tuneline.catalogue import get_item
from tuneline.evidence import Measurement, Verdict, load_evidence
from tuneline.governance.documents.bill_of_materials import purl
from tuneline.governance.documents.facts import UNSTATED, Facts, ItemFacts
from tuneline.governance.release.manifest import lock_files
from tuneline.governance.release.signature import kept_or_signed, plain
from tuneline.step_context import StepContext
from tuneline.verdicts import status

TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
PROVENANCE = "https://slsa.dev/provenance/v1"
# What the parameters of the provenance mean: docs/release-documents.md.
BUILD_TYPE = "tuneline:finetune_to_production/1"
# The digest of a directory: a hash over the hashes of its files. SLSA allows names of one's own.
OF_FILE_HASHES = "tunelineFileHashes"

_RESULTS = {
    Verdict.PASS: "PASSED",
    Verdict.WARN: "WARNED",
    Verdict.WAIVED: "WARNED",
    # Nothing was tested: PASSED would claim that it was, FAILED that something is wrong.
    Verdict.NOT_APPLICABLE: "WARNED",
    Verdict.INCONCLUSIVE: "WARNED",
    Verdict.NOT_RUN: "FAILED",
    Verdict.FAIL: "FAILED",
}


def result_of(verdict: Verdict, *, production: bool) -> str:
    """Return the result that stands for a verdict."""
    if production and verdict == Verdict.INCONCLUSIVE:
        return "FAILED"
    return _RESULTS[verdict]


def test_results(facts: Facts) -> dict[str, dict[str, Any]]:
    """Return a statement for each item but `lineage`, by the item's id.

    An item that was not run has one too: a statement that is missing could have been left out.
    """
    return {
        name: _statement(facts, TEST_RESULT, _test_result(facts, one))
        for name, one in facts.items.items()
    }


def lineage_result(facts: Facts, one: ItemFacts, manifest_sha256: str) -> dict[str, Any]:
    """Return the statement of `lineage`, which is about the manifest as well."""
    manifest = {MANIFEST_FILE: manifest_sha256}
    return _statement(facts, TEST_RESULT, _test_result(facts, one), manifest)


def provenance(facts: Facts) -> dict[str, Any]:
    """Return the statement of how the model was made."""
    manifest = facts.release.manifest
    lora, plan = (manifest.hyperparameters.get(name) for name in ("lora", "plan"))
    predicate = ParseDict(
        {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": facts.config or {"name": manifest.name},
                "internalParameters": {"lora": lora, "plan": plan, "engine": manifest.engine},
                "resolvedDependencies": list(_dependencies(facts)),
            },
            "runDetails": {
                "builder": {
                    "id": f"tuneline:{'airflow' if manifest.airflow_run else 'command_line'}",
                    "version": {"tuneline": __version__, "contract": str(CONTRACT_VERSION)},
                },
                "metadata": {
                    "invocationId": str(manifest.run.get("uri", "")),
                    "startedOn": manifest.run.get("created_at"),
                    "finishedOn": facts.finished_at or None,
                },
                "byproducts": [
                    _file(entry.name, entry.sha256)
                    for one in facts.items.values()
                    for entry in one.files
                ],
            },
        },
        Provenance(),
    )
    return _statement(facts, PROVENANCE, predicate)


def _statement(
    facts: Facts, predicate_type: str, predicate: Any, also: Mapping[str, str] | None = None
) -> dict[str, Any]:
    files = {**facts.model_files, **(also or {})}
    subjects = [
        ResourceDescriptor(name=name, digest={"sha256": sha256}).pb
        for name, sha256 in sorted(files.items())
    ]
    statement = Statement(subjects, predicate_type, MessageToDict(predicate))
    statement.validate()
    return MessageToDict(statement.pb)


def _test_result(facts: Facts, one: ItemFacts) -> Any:
    manifest = facts.release.manifest
    configuration = [_file(e.name, e.sha256) for e in manifest.files if e.name == CONFIG_FILE]
    # What three results can't say: the verdict itself, and why.
    noted = {"item": one.item.id, "severity": str(one.item.severity), "verdict": str(one.verdict)}
    noted |= {"summary": one.summary, "because": one.because}
    configuration += [{**_file(e.name, e.sha256), "annotations": noted} for e in one.files]
    folder = f"{model_prefix(manifest.name, manifest.version)}/evidence/{one.item.id}"
    named = {
        "passedTests": _names(m for m in one.deciding if m.ok),
        "warnedTests": _names(m for m in one.deciding if m.ok is False and m.on_breach == "warn"),
        "failedTests": _names(m for m in one.deciding if m.ok is False and m.on_breach != "warn"),
    }
    return ParseDict(
        {
            "result": result_of(one.verdict, production=facts.production),
            "configuration": configuration,
            "url": facts.release.store.uri_of(folder),
            **named,
        },
        TestResult(),
    )


def _names(measurements: Iterable[Measurement]) -> list[str]:
    return [one.name for one in measurements]


def _dependencies(facts: Facts) -> Iterable[Mapping[str, Any]]:
    manifest = facts.release.manifest
    base = manifest.base_model
    if base.get("digest"):
        digest = {OF_FILE_HASHES: base["digest"]}
        yield {"name": "base model", "uri": base.get("uri", ""), "digest": digest}
    if manifest.dataset_file is not None:
        uri = facts.release.store.uri_of(manifest.dataset_file.key)
        yield {"name": "dataset", "uri": uri, "digest": {"sha256": manifest.dataset_file.sha256}}
    for source in facts.dataset.get("sources") or []:
        path = Path(source["name"])
        uri = source.get("origin") or (path.as_uri() if path.is_absolute() else source["name"])
        yield {"name": "source", "uri": uri, "digest": {"sha256": source["sha256"]}}
    if commit := manifest.code.get("commit"):
        yield {"name": "code", "digest": {"gitCommit": commit}}
    packages = {pair for one in manifest.environments for pair in one.packages.items()}
    for name, version in sorted(packages):
        yield {"name": "package", "uri": purl(name, version).to_string()}


def _file(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}


_EVIDENCE = Artifact(UNSTATED, "evidence.json")


def write_lineage_statement(ctx: StepContext, reference: ManifestRef) -> str:
    """Ship the evidence of `lineage` and the statement about it.

    What an earlier try left is replaced: it has released nothing. Returns the SHA-256 of the
    statement's file.
    """
    store, config = ctx.run.store, ctx.config
    prefix = model_prefix(config.name, reference.version)
    raw = store.get_bytes(_EVIDENCE.key(ctx.run))
    shipped = store.put_bytes(f"{prefix}/{LINEAGE_EVIDENCE}", raw)
    manifest = Manifest.model_validate_json(
        store.get_bytes(manifest_key(config.name, reference.version), sha256=reference.sha256)
    )
    row = status(ctx.run, UNSTATED)
    facts = ItemFacts(
        get_item(UNSTATED),
        Verdict(row.verdict),
        row.summary,
        row.because,
        load_evidence(raw, LINEAGE_EVIDENCE),
        [ManifestFile(name=LINEAGE_EVIDENCE, sha256=shipped.sha256, bytes=shipped.bytes)],
    )
    statement = lineage_result(Facts(Release(store, manifest)), facts, reference.sha256)
    plainly, signed = (f"{prefix}/{name}" for name in LINEAGE_STATEMENTS)
    content, key = plain(statement), plainly
    if config.governance.signing_key is not None:
        private = Path(config.governance.signing_key)
        content, key = kept_or_signed(store, signed, content, private), signed
    store.put_bytes(key, content)
    return hashlib.sha256(content).hexdigest()


def lock_lineage_statement(ctx: StepContext, version: str) -> list[Measurement]:
    """Lock the two files as `lineage` has locked the others, if the run asks for it."""
    store, prefix = ctx.run.store, model_prefix(ctx.config.name, version)
    names = (LINEAGE_EVIDENCE, *LINEAGE_STATEMENTS)
    keys = [key for name in names if store.exists(key := f"{prefix}/{name}")]
    return lock_files(store, keys, ctx.config.governance)
