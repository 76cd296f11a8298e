"""The statement of `lineage`, which `promote` ships with its evidence.

The verdict of `lineage` rests on the manifest, so that no file of the manifest can state it. Its
statement has the manifest's hash among its subjects instead, and the line of the release log that
releases the version carries the hash of the statement. `release.lineage_check` compares them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tuneline.artifacts.artifact import Artifact
from tuneline.artifacts.governance import Manifest, ManifestFile, ManifestRef
from tuneline.artifacts.releases import (
    LINEAGE_EVIDENCE,
    LINEAGE_STATEMENTS,
    Release,
    manifest_key,
    model_prefix,
)
from tuneline.catalogue import get_item
from tuneline.evidence import Measurement, Verdict, load_evidence
from tuneline.governance.documents.envelope import kept_or_signed, plain
from tuneline.governance.documents.facts import UNSTATED, Facts, ItemFacts
from tuneline.governance.documents.statements import lineage_result
from tuneline.governance.release.lock import lock_files
from tuneline.step_context import StepContext
from tuneline.verdicts import status

_EVIDENCE = Artifact(UNSTATED, "evidence.json")


def write_lineage_statement(ctx: StepContext, reference: ManifestRef) -> str:
    """Ship the evidence of `lineage` and the statement about it.

    What an earlier try left is replaced: it has released nothing, or the version would not be
    released again.

    Args:
        ctx: the step that promotes.
        reference: the manifest that it releases.

    Returns:
        SHA-256 of the statement's file.

    Raises:
        UserError: if the signing key can't be used.
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
