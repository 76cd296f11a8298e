"""What of a manifest is checked against bytes, and what is declared.

`tuneline verify` finds an edit of every field that is `checked`: it recomputes a hash, or compares
a copy with the file of the release that it was copied from. What is `declared` was taken over from
settings, the publisher of the base model, git, Airflow or package metadata. That `config.json` says
the same makes a setting no truer, so that settings are declared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from tuneline.artifacts.governance import Basis, Manifest, ManifestEvidence
from tuneline.artifacts.releases import POLICY_FILE, Release
from tuneline.errors import TunelineError
from tuneline.evidence import Evidence, Verdict, worse
from tuneline.store import Store
from tuneline.verdicts import OUT_OF_DATE

# By path; `*` stands for any key. A longer path goes before a shorter one.
BASIS: dict[str, Basis] = {
    "schema": "declared",
    "created_at": "declared",
    "name": "checked",
    "version": "checked",
    "run": "declared",
    "started_by": "declared",
    "airflow_run": "declared",
    "reason": "declared",
    "base_model": "declared",
    "dataset": "checked",
    "dataset.source": "declared",
    "dataset_file": "checked",
    "dataset_file.rows": "declared",
    "code": "declared",
    "hyperparameters": "declared",
    "hyperparameters.lora": "checked",
    "hyperparameters.plan": "checked",
    "engine": "checked",
    "evidence": "checked",
    "evidence.*.because": "declared",
    "environments": "declared",
    "seeds": "declared",
    "previous_version": "checked",
    "parent": "checked",
    "policy": "declared",
    "policy.sha256": "checked",
    "signature": "checked",
    "basis": "declared",
    "files": "checked",
}
# A person accepted what the evidence says, or it was withdrawn.
_BETTER_THAN_EVIDENCE = (Verdict.WAIVED, Verdict.NOT_RUN)


def basis_of(path: str) -> Basis:
    """Return whether a value of a manifest is checked or declared.

    Args:
        path: its path, such as `evidence.fallback.verdict`; without indices of lists.
    """
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        for known, basis in BASIS.items():
            pattern = known.split(".")
            if len(pattern) == length and all(
                a in ("*", b) for a, b in zip(pattern, parts, strict=False)
            ):
                return basis
    return "declared"


def copy_differences(store: Store, manifest: Manifest) -> Iterator[str]:
    """Compare what the manifest repeats with the files of the release that it was copied from.

    A file that is missing or has other bytes than the manifest states is left to the hashes. A
    manifest without a basis, as they were written before, promises no copies.
    """
    if not manifest.basis:
        return
    release = Release(store, manifest)
    dataset = {k: v for k, v in manifest.dataset.items() if k != "source"}
    for field, copy, name in (
        ("dataset", dataset, "dataset.json"),
        ("hyperparameters.lora", manifest.hyperparameters.get("lora"), "lora.json"),
        ("hyperparameters.plan", manifest.hyperparameters.get("plan"), "plan.json"),
        ("engine", manifest.engine, "identity.json"),
    ):
        raw = _read(release, name)
        if raw is not None and json.loads(raw) != copy:
            yield f"{release.uri}: {field} is not what {name} of the release says"
    policy = release.find(POLICY_FILE)
    stated_policy = manifest.policy.sha256 if manifest.policy else None
    if stated_policy != (policy.sha256 if policy else None):
        yield f"{release.uri}: policy.sha256 is not the hash of {POLICY_FILE} of the release"
    for item, stated in manifest.evidence.items():
        yield from _evidence_differences(release, item, stated)
    for entry in manifest.files:
        folder, _, name = entry.name.rpartition("/")
        item = folder.removeprefix("evidence/")
        if name == "evidence.json" and item not in manifest.evidence:
            yield f"{release.uri} states no verdict of {item}, but ships {entry.name}"
    parent = manifest.parent.version if manifest.parent else None
    if manifest.previous_version != parent:
        yield f"{release.uri}: previous_version is not the version of its parent"


def _evidence_differences(release: Release, item: str, stated: ManifestEvidence) -> Iterator[str]:
    raw = _read(release, stated.file)
    if raw is None:
        return
    try:
        evidence = Evidence.model_validate_json(raw)
    except ValidationError as error:
        yield f"{release.uri}: {stated.file} is no evidence: {error.errors()[0]['msg']}"
        return
    if wrong := [name for name, holds in _agreements(item, stated, evidence).items() if not holds]:
        yield (
            f"{release.uri}: {', '.join(wrong)} of {item} "
            f"{'is' if len(wrong) == 1 else 'are'} not what {stated.file} says"
        )


def _agreements(item: str, stated: ManifestEvidence, evidence: Evidence) -> dict[str, bool]:
    """Return of each word of an item's entry whether its evidence bears it.

    Gates and audits make a verdict worse and add to the summary, never the other way.
    """
    verdict = Verdict(stated.verdict) if stated.verdict in set(Verdict) else None
    borne = verdict is not None and worse(verdict, evidence.verdict) == verdict
    return {
        "item": evidence.item == item,
        "phase": evidence.phase == stated.phase,
        "severity": evidence.severity == stated.severity,
        "summary": stated.summary.removeprefix(OUT_OF_DATE) == evidence.summary
        or stated.summary.startswith(f"{evidence.summary} (but "),
        "verdict": borne or verdict in _BETTER_THAN_EVIDENCE,
    }


def _read(release: Release, name: str) -> Any:
    """Return a file of the release; None if it has none, or one that its hash does not fit."""
    try:
        return release.read(name)
    except TunelineError:
        return None
