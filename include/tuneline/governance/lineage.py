"""lineage: a manifest beside the model ties it to its data, code and hyperparameters.

The form follows SLSA provenance (https://slsa.dev/provenance): what was built, from which
materials, by whom. `tuneline verify` recomputes every hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneline.artifacts.artifact import Artifact
from tuneline.artifacts.data import DATASET, DATASET_CARD, DATASET_VERSION, SCRUBBED
from tuneline.artifacts.deployment import CHOICE, ENGINE_IDENTITY, ENGINE_REPORT, WARM_UP
from tuneline.artifacts.governance import (
    CALIBRATION,
    MANIFEST_REF,
    DatasetFile,
    Manifest,
    ManifestEvidence,
    ManifestFile,
    ManifestRef,
    Parent,
)
from tuneline.artifacts.releases import (
    ADAPTER_FILE,
    CHECKPOINT_FOLDER,
    ENGINE_FOLDER,
    MANIFEST_FILE,
    MODEL_FILE,
    Release,
    model_prefix,
    released,
)
from tuneline.artifacts.training import ADAPTER, HISTORY, LORA, MERGED, PLAN
from tuneline.asking.models import candidate, ships_apart
from tuneline.bases import base_of
from tuneline.catalogue import ITEMS
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Measurement, Verdict, breach_in, measure
from tuneline.failures import ended_by_error
from tuneline.governance.documents.annex_iv import ANNEX_FILE, annex_iv
from tuneline.governance.documents.bill_of_materials import bill_of_materials
from tuneline.governance.documents.facts import UNSTATED, Facts
from tuneline.governance.documents.model_card import CARD_FILE, model_card
from tuneline.governance.documents.statements import provenance, test_results
from tuneline.governance.pages.checklist import gather, render
from tuneline.governance.release.manifest import (
    environment_measurements,
    environments,
    lock_files,
    other_steps,
    policy_files,
    policy_measurements,
    policy_of,
    put_once,
    seeds,
    store_files,
    write_manifest,
)
from tuneline.governance.release.signature import SIGNATURE, kept_or_signed, plain, sign, stated
from tuneline.governance.release.verify import BASIS, version_differences
from tuneline.licenses.duties import license_files
from tuneline.models.chat_templates import request_defaults
from tuneline.run import Run
from tuneline.serving.client import TEMPERATURE
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import ServedModel
from tuneline.step_context import StepContext
from tuneline.store import sha256_file
from tuneline.verdicts import Freshness, Grounds, status

_BOM_FILE, _CHECKLIST_FILE, _STATEMENTS = "bom.cdx.json", "checklist.html", "attestations/"
# A gateway counts tokens with it where an engine reports none.
TOKENIZER = Artifact(MERGED.step, f"{MERGED.name}/tokenizer.json")
# Items that start the engine before the bytes that ship are chosen.
_BEFORE_THE_CHOICE = ("adapter_merging", "production_quantization")
# Items that start it on those bytes; their evidence names the hash.
MEASURED_ON_SHIPPED = tuple(
    item.id for item in ITEMS if item.engine and item.id not in _BEFORE_THE_CHOICE
)
# A helper step that measures `pii_scrubbing` again, on the bytes that ship.
EXTRACTION_AUDIT = "extraction_audit"
# What ships beside the model and the evidences. Files lie at the top of the version's folder.
SHIPPED_FILES: tuple[Artifact, ...] = (
    CHOICE,
    TOKENIZER,
    DATASET_VERSION,
    DATASET_CARD,
    LORA,
    PLAN,
    HISTORY,
    ENGINE_IDENTITY,
    ENGINE_REPORT,
)
_SHIPPING = tuple({*(artifact.step for artifact in SHIPPED_FILES), ADAPTER.step})


def code_measurements(code: dict[str, Any], profile: str) -> list[Measurement]:
    """Judge the identity of the code."""
    breach = breach_in(profile)
    versioned = code.get("commit") is not None
    return [
        measure("code_is_versioned", versioned, "flag", "==", True, on_breach=breach),
        measure("code_is_clean", code.get("dirty") is False, "flag", "==", True, on_breach=breach),
    ]


def shipped_model(ctx: StepContext) -> ServedModel | None:
    """Return the bytes that ship, verified; None if none were chosen or built."""
    if not CHOICE.exists(ctx):
        return None
    compiled = get_engine(CHOICE.read(ctx).engine).form == "engine"
    if compiled and not ENGINE_IDENTITY.exists(ctx):
        return None
    return candidate(ctx).model


def collect_files(ctx: StepContext, model: ServedModel | None) -> dict[str, Path]:
    """Fetch what ships, verified: local file by name in the version's folder."""
    files = {
        Path(artifact.name).name: artifact.fetch(ctx)
        for artifact in SHIPPED_FILES
        if artifact.exists(ctx)
    }
    # The items that leave them are not critical: a run ships without.
    for served_with in (CALIBRATION, WARM_UP):
        if ctx.run.find_evidence(served_with.step) and served_with.exists(ctx):
            files[served_with.name] = served_with.fetch(ctx)
    for ref in ctx.entry(ADAPTER.step).artifacts:
        if ref.name.startswith(f"{ADAPTER.name}/"):
            files[ref.name] = ctx.input(ADAPTER.step, ref.name)
    if model is not None and model.adapter is not None:
        # The base is shared and stays where it lies; a PEFT folder is among the files already.
        if model.adapter.path.is_file():
            files[ADAPTER_FILE] = model.adapter.path
    elif model is not None and model.path.is_file():
        files[MODEL_FILE] = model.path
    elif model is not None:
        compiled = get_engine(model.engine).form == "engine"
        folder = ENGINE_FOLDER if compiled else CHECKPOINT_FOLDER
        files |= {f"{folder}{name}": model.path / name for name in model.files}
    return files | license_files(ctx)


def measured_otherwise(ctx: StepContext, model: ServedModel | None) -> list[str]:
    """Return the items that measured a model, but not the bytes that ship.

    An item without evidence, or whose step ended with an error, has measured nothing and is left to
    the checklist. The extraction audit is not an item: it is listed if it was not made at all.
    """
    found = []
    for item in MEASURED_ON_SHIPPED:
        evidence = ctx.run.find_evidence(item)
        if evidence is None or evidence.verdict == Verdict.NOT_APPLICABLE:
            continue
        if ended_by_error(evidence):
            continue
        stated = {m.name: m.value for m in evidence.measurements}.get("candidate_sha256")
        if model is None or stated != model.sha256:
            found.append(item)
    try:
        audited = {m.name: m.value for m in ctx.entry(EXTRACTION_AUDIT).measurements}
    except UserError:
        audited = {}
    if model is None or audited.get("candidate_sha256") != model.sha256:
        found.append(EXTRACTION_AUDIT)
    return found


def collect_evidences(ctx: StepContext) -> tuple[dict[str, Path], dict[str, ManifestEvidence]]:
    """Fetch the evidences of the other 24 items."""
    grounds = Grounds(ctx.run)
    files: dict[str, Path] = {}
    verdicts: dict[str, ManifestEvidence] = {}

    def take(key: str, name: str) -> None:
        if ctx.run.store.exists(key):
            files[name] = ctx.scratch / name
            ctx.run.store.get_file(key, files[name])

    for item in ITEMS:
        if item.id == ctx.step or ctx.run.find_evidence(item.id) is None:
            continue
        for name in ("evidence.json", "gate.json"):
            take(ctx.run.step_key(item.id, name), f"evidence/{item.id}/{name}")
        row = status(ctx.run, item.id, grounds)
        verdicts[item.id] = ManifestEvidence(
            phase=item.phase,
            severity=item.severity,
            verdict=row.verdict,
            summary=row.summary,
            because=row.because,
            file=f"evidence/{item.id}/evidence.json",
        )
    audited = ctx.run.step_key(EXTRACTION_AUDIT, "record.json")
    take(audited, f"evidence/{SCRUBBED.step}/{EXTRACTION_AUDIT}.json")
    return files, verdicts


def dataset_file(ctx: StepContext) -> DatasetFile | None:
    """Return the place and the hash of the rows that training read; None if they were not kept."""
    try:
        artifacts = ctx.entry(DATASET.step).artifacts
    except UserError:
        return None
    for ref in artifacts:
        if ref.name == DATASET.name:
            key = ctx.run.store.key_of(ref.uri)
            return DatasetFile(key=key, sha256=ref.sha256, bytes=ref.bytes, rows=ref.rows)
    return None


def parent_of(run: Run) -> Parent | None:
    """Return the release that the version would replace, by the hash of its manifest."""
    before = released(run)
    return Parent(version=before.version, manifest_sha256=before.sha256) if before else None


def describe(
    ctx: StepContext,
    evidence: dict[str, ManifestEvidence],
    files: list[ManifestFile],
    defaults: dict[str, Any],
) -> Manifest:
    """Return the manifest of the run's model version, measured by requests with `defaults`."""
    config, meta = ctx.config, ctx.run.meta
    base = base_of(ctx, weights=False)
    parent = parent_of(ctx.run)
    return Manifest(
        name=config.name,
        version=ctx.run.run_id,
        run={"uri": ctx.run.uri, "created_at": meta["created_at"]},
        started_by=meta.get("started_by"),
        airflow_run=meta.get("airflow"),
        reason=config.reason,
        base_model={
            "uri": config.base_model,
            "digest": base.digest,
            "license": base.license,
            "revision": base.revision,
        },
        dataset={
            **ctx.read_json(DATASET_VERSION.step, DATASET_VERSION.name),
            "source": config.data.source,
        },
        dataset_file=dataset_file(ctx),
        code=meta["code"],
        hyperparameters={
            **config.training.model_dump(mode="json"),
            "lora": _content(ctx, LORA),
            "plan": _content(ctx, PLAN),
        },
        engine=_content(ctx, ENGINE_IDENTITY),
        defaults=defaults,
        evidence=evidence,
        environments=environments(ctx.run, _SHIPPING),
        seeds=seeds(ctx.run),
        previous_version=parent.version if parent else None,
        parent=parent,
        policy=policy_of(ctx.run),
        signature=stated(config.governance),
        basis=BASIS,
        files=files,
    )


def _content(ctx: StepContext, artifact: Artifact) -> Any:
    """Return a JSON file word for word, None where its step left none."""
    return ctx.read_json(artifact.step, artifact.name) if artifact.exists(ctx) else None


def sign_release(ctx: StepContext, prefix: str, files: dict[str, Path]) -> None:
    """Sign the files and the manifest of the version, if that is configured and was not done."""
    governance, store = ctx.config.governance, ctx.run.store
    key = Path(governance.signing_key) if governance.signing_key else None
    if key is None or store.exists(f"{prefix}/{SIGNATURE}"):
        return
    manifest = ctx.scratch / MANIFEST_FILE
    store.get_file(f"{prefix}/{MANIFEST_FILE}", manifest)
    signature = sign({**files, MANIFEST_FILE: manifest}, key, ctx.scratch)
    put_once(store, f"{prefix}/{SIGNATURE}", signature, sha256_file(signature))


def run(ctx: StepContext) -> Evidence:
    """Write the model version's files and its manifest, then verify what was written."""
    store = ctx.run.store
    prefix = model_prefix(ctx.config.name, ctx.run.run_id)
    evidence_files, evidences = collect_evidences(ctx)
    model = shipped_model(ctx)
    as_decided = model is not None and (model.adapter is not None) == ships_apart(ctx)
    others = measured_otherwise(ctx, model)
    stale = Freshness(ctx.run, deep=True).outdated(i.id for i in ITEMS if i.id != ctx.step)
    files = {**collect_files(ctx, model), **evidence_files, **policy_files(ctx)}
    defaults = {"temperature": TEMPERATURE, **(request_defaults(model.path) if model else {})}
    manifest = describe(ctx, evidences, store_files(ctx, prefix, files), defaults)
    manifest = _add_documents(ctx, manifest, files)
    manifest_sha256 = write_manifest(store, prefix, manifest)
    sign_release(ctx, prefix, files)
    locks = lock_files(store, list(store.keys(prefix)), ctx.config.governance)
    uri = store.uri_of(f"{prefix}/{MANIFEST_FILE}")
    differences = version_differences(uri)
    MANIFEST_REF.write(ctx, ManifestRef(uri=uri, sha256=manifest_sha256, version=manifest.version))
    code, surroundings = manifest.code, manifest.environments
    differing = other_steps(code, surroundings)
    commit = (code.get("commit") or "no commit")[:12]
    return ctx.conclude(
        f"{uri} states {len(manifest.files)} files by hash, {len(evidences)} evidences, dataset "
        f"{manifest.dataset['version'][:12]} and code {commit} ({code['note']})"
        + (f"; not measured on the bytes that ship: {', '.join(others)}" if others else "")
        + (f"; out of date: {'; '.join(stale)}" if stale else "")
        + (f"; of other code: {'; '.join(differing)}" if differing else ""),
        [
            measure("evidences", len(evidences), "files", "==", len(ITEMS) - 1),
            measure("hashes_that_differ", len(differences), "files", "==", 0),
            measure("items_measured_on_other_bytes", len(others), "items", "==", 0),
            measure("causes_of_outdated_evidence", len(stale), "inputs", "==", 0),
            *([measure("ships_as_decided", as_decided, "flag", "==", True)] if model else []),
            measure("candidate_sha256", model.sha256 if model else None, "sha256"),
            *code_measurements(code, ctx.config.profile),
            *policy_measurements(ctx.run),
            *locks,
            *environment_measurements(code, surroundings, ctx.config.profile),
        ],
    )


def _add_documents(ctx: StepContext, manifest: Manifest, files: dict[str, Path]) -> Manifest:
    """Write and store the documents of a version."""
    documents = {}
    for name, content in _documents(ctx, Facts(Release(ctx.run.store, manifest))):
        documents[name] = ctx.scratch / "documents" / name
        documents[name].parent.mkdir(parents=True, exist_ok=True)
        documents[name].write_bytes(content)
    files.update(documents)
    prefix = model_prefix(manifest.name, manifest.version)
    stated = [*manifest.files, *store_files(ctx, prefix, documents)]
    return manifest.model_copy(update={"files": sorted(stated, key=lambda entry: entry.name)})


def _documents(ctx: StepContext, facts: Facts) -> Iterator[tuple[str, bytes]]:
    yield CARD_FILE, model_card(facts).encode()
    yield ANNEX_FILE, annex_iv(facts).encode()
    yield _BOM_FILE, bill_of_materials(facts)
    yield _CHECKLIST_FILE, _checklist_file(ctx)
    if not facts.model_files:
        ctx.log("nothing was trained or chosen that a statement could be about")
        return
    key = ctx.config.governance.signing_key
    manifest = facts.release.manifest
    prefix = model_prefix(manifest.name, manifest.version)
    for name, statement in {**test_results(facts), "provenance": provenance(facts)}.items():
        payload = plain(statement)
        if key is None:
            yield f"{_STATEMENTS}{name}.intoto.json", payload
        else:
            file = f"{_STATEMENTS}{name}.dsse.json"
            stored = kept_or_signed(ctx.run.store, f"{prefix}/{file}", payload, Path(key))
            yield file, stored


def _checklist_file(ctx: StepContext) -> bytes:
    """Return the checklist of the run as one file, with its plots."""
    page = gather(ctx.run, [item.id for item in ITEMS if item.id != UNSTATED])
    # What runs now is the step that writes this. It is written once: what people say of the version
    # later, and how its canary goes, is in the release log.
    return render(replace(page, running={}, approvals=[], canary=None)).encode()
