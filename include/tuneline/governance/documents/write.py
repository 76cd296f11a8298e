"""Write the documents of a release, before its manifest states their hashes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tuneline.artifacts.governance import Manifest
from tuneline.artifacts.releases import Release, model_prefix
from tuneline.catalogue import ITEMS
from tuneline.governance.documents.annex_iv import ANNEX_FILE, annex_iv
from tuneline.governance.documents.bill_of_materials import bill_of_materials
from tuneline.governance.documents.facts import UNSTATED, Facts
from tuneline.governance.documents.model_card import CARD_FILE, model_card
from tuneline.governance.documents.statements import provenance, test_results
from tuneline.governance.pages.checklist import gather, render
from tuneline.governance.release.manifest import store_files
from tuneline.governance.release.signature import kept_or_signed, plain
from tuneline.step_context import StepContext

BOM_FILE = "bom.cdx.json"
CHECKLIST_FILE = "checklist.html"
STATEMENTS = "attestations/"


def add_documents(ctx: StepContext, manifest: Manifest, files: dict[str, Path]) -> Manifest:
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
    yield BOM_FILE, bill_of_materials(facts)
    yield CHECKLIST_FILE, checklist_file(ctx)
    if not facts.model_files:
        ctx.log("nothing was trained or chosen that a statement could be about")
        return
    key = ctx.config.governance.signing_key
    manifest = facts.release.manifest
    prefix = model_prefix(manifest.name, manifest.version)
    for name, statement in {**test_results(facts), "provenance": provenance(facts)}.items():
        payload = plain(statement)
        if key is None:
            yield f"{STATEMENTS}{name}.intoto.json", payload
        else:
            file = f"{STATEMENTS}{name}.dsse.json"
            stored = kept_or_signed(ctx.run.store, f"{prefix}/{file}", payload, Path(key))
            yield file, stored


def checklist_file(ctx: StepContext) -> bytes:
    """Return the checklist of the run as one file, with its plots."""
    page = gather(ctx.run, [item.id for item in ITEMS if item.id != UNSTATED])
    # What runs now is the step that writes this. It is written once: what people say of the version
    # later, and how its canary goes, is in the release log.
    return render(replace(page, running={}, approvals=[], canary=None)).encode()
