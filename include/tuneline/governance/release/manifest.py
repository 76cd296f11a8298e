"""The manifest of a model version and the files beside it, each written once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tuneline.artifacts.governance import (
    Manifest,
    ManifestFile,
    ManifestPolicy,
    PolicyException,
    StepEnvironment,
    find_packages,
    image_of,
)
from tuneline.artifacts.releases import CONFIG_FILE, POLICY_FILE
from tuneline.catalogue import ITEMS, STEPS
from tuneline.config import read_policy
from tuneline.config.governance import GovernanceConfig
from tuneline.environment import environment, other_code
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Measurement, Record, breach_in, measure
from tuneline.run import Run, now
from tuneline.step_context import StepContext
from tuneline.store import AlreadyThere, CorruptObject, Store, sha256_file
from tuneline.verdicts import looser_limits


def write_manifest(store: Store, prefix: str, manifest: Manifest) -> str:
    """Write a manifest once.

    A retried step may write the same manifest again, except for its time; any other content
    is refused.
    """
    # The files that it states come first, also on the disk.
    store.flush()
    key = f"{prefix}/manifest.json"
    document = {**manifest.model_dump(mode="json", by_alias=True), "created_at": now()}
    raw = json.dumps(document, indent=1, ensure_ascii=False).encode()
    try:
        return store.put_bytes(key, raw, once=True).sha256
    except AlreadyThere:
        stored = store.get_bytes(key)
        if {**json.loads(stored), "created_at": None} != {**document, "created_at": None}:
            raise UserError(
                f"{store.uri_of(key)} exists with other content and is written once; "
                "start a new run for a new version"
            ) from None
        return hashlib.sha256(stored).hexdigest()


def put_once(store: Store, key: str, path: Path, sha256: str) -> None:
    """Write a model's file once; the same bytes may be written again."""
    try:
        store.put_file(key, path, once=True)
    except AlreadyThere:
        try:
            same = store.rehash(key).sha256 == sha256
        except CorruptObject:
            same = False
        if not same:
            raise UserError(
                f"{store.uri_of(key)} exists with other bytes and is written once; "
                "start a new run for a new version"
            ) from None


def store_files(ctx: StepContext, prefix: str, files: dict[str, Path]) -> list[ManifestFile]:
    """Write the files of the model version, each once; return their hashes in order of name."""
    stated = []
    for name, path in ctx.progress(sorted(files.items()), len(files), "storing the model's files"):
        digest = sha256_file(path)
        put_once(ctx.run.store, f"{prefix}/{name}", path, digest)
        stated.append(ManifestFile(name=name, sha256=digest, bytes=path.stat().st_size))
    return stated


def policy_files(ctx: StepContext) -> dict[str, Path]:
    """Return copies of the run's configuration and of the policy that bounds it, by name."""
    files = {name: ctx.scratch / name for name in (CONFIG_FILE, POLICY_FILE)}
    ctx.run.store.get_file(ctx.run.key(CONFIG_FILE), files[CONFIG_FILE])
    files[POLICY_FILE].write_bytes(ctx.run.policy.text.encode())
    return files


def policy_of(run: Run) -> ManifestPolicy:
    """Return what the manifest says of the policy."""
    return ManifestPolicy(
        version=run.policy.version,
        sha256=run.policy.sha256,
        looser=[
            PolicyException(
                setting=one.looser.setting,
                item=one.looser.item,
                critical=one.looser.critical,
                value=one.looser.value,
                allowed=one.looser.floor,
                reason=one.waiver.reason if one.waiver else None,
                by=run.meta["started_by"] if one.waiver else None,
            )
            for one in looser_limits(run)
        ],
    )


def policy_measurements(run: Run) -> list[Measurement]:
    """Judge whether this image has the policy under which the run was created.

    Another one warns on the laptop and fails under `profile: production`.
    """
    breach = breach_in(run.config.profile)
    try:
        here = read_policy().sha256
    except UserError:
        here = ""
    # Not `run.policy`, which is this image's where the run recorded none.
    recorded = (run.meta.get("policy") or {}).get("sha256")
    found = looser_limits(run)
    return [
        measure("policy_is_the_runs", here == recorded, "flag", "==", True, on_breach=breach),
        measure("limits_looser_than_policy", len(found), "settings"),
        measure("looser_limits_waived", sum(one.waiver is not None for one in found), "settings"),
    ]


_OWN = "lineage"


def environments(run: Run, shipping: Sequence[str]) -> list[StepEnvironment]:
    """Return the environments of the run's steps, each once for all steps that share it.

    `shipping` are helper steps of which something ships. Others may end while lineage runs, and the
    manifest of a second try would differ.
    """
    found: dict[str, StepEnvironment] = {}
    for step, entry in _counted(run, shipping):
        # Lineage has no evidence of its own yet, and its pod still runs.
        stated = entry.environment if entry else environment()
        pod = image_of(step).find(run) if entry else None
        one = StepEnvironment(
            python=stated.get("python", ""),
            packages=find_packages(run, stated),
            device=stated.get("device", ""),
            code=stated.get("code") or {},
            image=pod.image if pod else "",
            image_id=pod.image_id if pod else "",
            steps=[],
        )
        found.setdefault(one.model_dump_json(), one).steps.append(step)
    return list(found.values())


def seeds(run: Run) -> dict[str, Any]:
    """Return the seeds of a run: that of the configuration, and those that steps drew or state."""
    found: dict[str, Any] = {"training.seed": run.config.training.seed}
    for item in ITEMS:
        entry = run.find_entry(item.id) if item.id != _OWN else None
        for measurement in entry.measurements if entry else []:
            if measurement.name.endswith("seed"):
                found[f"{item.id}.{measurement.name}"] = measurement.value
    return found


def environment_measurements(
    code: dict[str, Any], found: Sequence[StepEnvironment], profile: str
) -> list[Measurement]:
    """Judge what the steps ran in."""
    breach = breach_in(profile)
    others = [step for one in found if other_code(code, one.code) for step in one.steps]
    digests = {one.image_id for one in found if one.image_id}
    return [
        measure("steps_of_other_code", len(others), "steps", "==", 0, on_breach=breach),
        measure("images_known_by_digest", len(digests), "images"),
    ]


def other_steps(code: dict[str, Any], found: Sequence[StepEnvironment]) -> list[str]:
    """Return the steps that ran other code than the DAG, each with how it differs."""
    return [
        f"{', '.join(one.steps)}: {why}" for one in found if (why := other_code(code, one.code))
    ]


def _counted(run: Run, shipping: Sequence[str]) -> Iterator[tuple[str, Evidence | Record | None]]:
    """Yield each step that counts, with its entry; lineage itself without one."""
    counted = {item.id for item in ITEMS} | set(shipping)
    for step in STEPS:
        if step.id == _OWN:
            yield step.id, None
        elif step.id in counted and (entry := run.find_entry(step.id)) is not None:
            yield step.id, entry


def lock_files(store: Store, keys: Iterable[str], config: GovernanceConfig) -> list[Measurement]:
    """Lock the files of a version, if the run asks for it.

    Files that stay free warn: a directory, or a bucket without Object Lock, locks nothing.
    """
    if config.lock_days is None:
        return []
    locked = [store.retain(key, config.lock_days, config.lock_mode) for key in keys]
    free = locked.count(False)
    return [measure("files_not_locked", free, "files", "==", 0, on_breach="warn")]
