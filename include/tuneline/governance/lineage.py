"""`lineage`: a manifest beside the model ties it to data, code and hyperparameters.

Proves that the release can be traced and checked: every file of the model version is
hashed and written once, the other 24 evidences lie beside it, and the code that made it
is a known commit. `tuneline verify` recomputes every hash. The form follows SLSA
provenance (https://slsa.dev/provenance): what was built, from which materials, by whom.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tuneline.catalogue import ITEMS
from tuneline.evidence import Evidence, FileRef, measure
from tuneline.governance.release.manifest import (
    model_prefix,
    put_once,
    read_release,
    verify,
    write_manifest,
)
from tuneline.models import resolve
from tuneline.run import StepContext
from tuneline.verdicts import status

# What ships, besides the evidences: (step, name of a file or of a folder).
SHIPPED_FILES = (
    ("production_quantization", "model.gguf"),
    ("production_quantization", "choice.json"),
    # Whoever bills answers of the model counts tokens with it.
    ("export_candidate", "merged/tokenizer.json"),
    ("final_audit", "dataset.json"),
    ("final_audit", "dataset_card.md"),
    ("lora_selection", "lora.json"),
    ("gradient_accumulation", "plan.json"),
    ("build_engine", "identity.json"),
)
SHIPPED_FOLDERS = (("train", "adapter"), ("build_engine", "engine"))


def code_measurements(code: dict[str, Any], profile: str) -> list[Any]:
    """Judge the identity of the code: unversioned or dirty code fails in production.

    Args:
        code: what `code_identity` found when the run was created.
        profile: `laptop` (warns) or `production` (fails).
    """
    breach: Any = "fail" if profile == "production" else "warn"
    versioned = code.get("commit") is not None
    return [
        measure("code_is_versioned", versioned, "flag", "==", True, on_breach=breach),
        measure("code_is_clean", code.get("dirty") is False, "flag", "==", True, on_breach=breach),
    ]


def collect_files(ctx: StepContext) -> dict[str, Path]:
    """Fetch, verified, what ships: name in the model's folder → local file."""
    files: dict[str, Path] = {}
    for step, name in SHIPPED_FILES:
        if ctx.has(step, name):
            files[Path(name).name] = ctx.input(step, name)
    for step, folder in SHIPPED_FOLDERS:
        names = [r.name for r in ctx.entry(step).artifacts if r.name.startswith(folder + "/")]
        for name in names:
            files[name] = ctx.input(step, name)
    return files


def collect_evidences(ctx: StepContext, target: Path) -> dict[str, dict[str, Any]]:
    """Write the other 24 evidences below `target`; give each one's verdict and summary."""
    found: dict[str, dict[str, Any]] = {}
    for item in ITEMS:
        if item.id == ctx.step or ctx.run.find_evidence(item.id) is None:
            continue
        for name in ("evidence.json", "gate.json"):
            key = ctx.run.step_key(item.id, name)
            if ctx.run.store.exists(key):
                local = target / item.id / name
                ctx.run.store.get_file(key, local)
        row = status(ctx.run, item.id)
        found[item.id] = {
            "phase": item.phase,
            "severity": item.severity,
            "verdict": row.verdict,
            "summary": row.summary,
            "because": row.because,
            "file": f"evidence/{item.id}/evidence.json",
        }
    return found


def run(ctx: StepContext) -> Evidence:
    """Write the model version's files and its manifest; verify what was written."""
    config, store = ctx.config, ctx.run.store
    version = ctx.run.run_id
    prefix = model_prefix(config.name, version)

    files = collect_files(ctx)
    evidence_dir = ctx.scratch / "evidence"
    evidences = collect_evidences(ctx, evidence_dir)
    for path in sorted(evidence_dir.rglob("*.json")):
        files[f"evidence/{path.relative_to(evidence_dir).as_posix()}"] = path
    config_copy = ctx.scratch / "config.json"
    config_copy.write_text(json.dumps(config.model_dump(mode="json"), indent=1))
    files["config.json"] = config_copy

    base = resolve(config.base_model)
    dataset = json.loads(ctx.input("final_audit", "dataset.json").read_text())
    stated: list[FileRef] = []
    for name, path in ctx.progress(sorted(files.items()), len(files), "storing the model's files"):
        ref = _reference(f"{store.uri_of(prefix)}/{name}", name, path)
        put_once(store, f"{prefix}/{name}", path, ref.sha256)
        stated.append(ref)

    previous = read_release(store, config.name)
    body = {
        "name": config.name,
        "version": version,
        "run": {"uri": ctx.run.uri, "created_at": ctx.run.meta["created_at"]},
        "started_by": ctx.run.meta.get("started_by"),
        "airflow_run": ctx.run.meta.get("airflow"),
        "reason": config.reason,
        "base_model": {
            "uri": config.base_model,
            "digest": base.digest,
            "license": base.license,
            "revision": base.revision,
        },
        "dataset": {**dataset, "source": config.data.source},
        "code": ctx.run.meta["code"],
        "hyperparameters": {
            **config.training.model_dump(mode="json"),
            "lora": _json(ctx, "lora_selection", "lora.json"),
            "plan": _json(ctx, "gradient_accumulation", "plan.json"),
        },
        "engine": _json(ctx, "build_engine", "identity.json"),
        "evidence": evidences,
        "previous_version": previous["version"] if previous else None,
        "files": [ref.model_dump(mode="json", exclude={"uri", "rows"}) for ref in stated],
    }
    manifest_sha256 = write_manifest(store, prefix, body)
    manifest_uri = store.uri_of(f"{prefix}/manifest.json")
    differences = verify(manifest_uri)
    (ctx.out / "manifest_ref.json").write_text(
        json.dumps({"uri": manifest_uri, "sha256": manifest_sha256, "version": version})
    )

    code = ctx.run.meta["code"]
    commit = (code.get("commit") or "no commit")[:12]
    return ctx.conclude(
        f"{manifest_uri} states {len(stated)} files by hash, {len(evidences)} evidences, dataset "
        f"{dataset['version'][:12]} and code {commit} ({code['note']})",
        [
            measure("evidences", len(evidences), "files", "==", len(ITEMS) - 1),
            measure("files_hashed", len(stated), "files", ">=", 1),
            measure("hashes_that_differ", len(differences), "files", "==", 0),
            *code_measurements(code, config.profile),
        ],
    )


def _json(ctx: StepContext, step: str, name: str) -> Any:
    return json.loads(ctx.input(step, name).read_text()) if ctx.has(step, name) else None


def _reference(uri: str, name: str, path: Path) -> FileRef:
    from tuneline.store import sha256_file

    return FileRef(name=name, uri=uri, sha256=sha256_file(path), bytes=path.stat().st_size)
