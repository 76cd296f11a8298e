"""`promote`: move the release pointer, or refuse and say which item stands in the way.

Refuses unless all 25 items reached a verdict that allows release, the shipping engine
was built, and the manifest verifies at this moment.
"""

from __future__ import annotations

import json

from tuneline.errors import UserError
from tuneline.evidence import Record, measure
from tuneline.governance.release.manifest import append_release, model_prefix, read_release, verify
from tuneline.run import StepContext, now
from tuneline.verdicts import checklist


def run(ctx: StepContext) -> Record:
    """Promote the run's model version.

    Raises:
        UserError: an item, the engine or the manifest refuses it; nothing was moved.
    """
    config, store = ctx.config, ctx.run.store
    reference = json.loads(ctx.input("lineage", "manifest_ref.json").read_text())
    refusals = [
        f"{row.item} ({row.verdict}: {row.because})"
        for row in checklist(ctx.run)
        if row.stops_release
    ]
    if not ctx.has("build_engine", "identity.json"):
        why = ctx.entry("build_engine").summary
        refusals.append(f"the engine {config.deployment.engine} was not built: {why}")
    refusals += verify(reference["uri"])
    if refusals:
        raise UserError(f"{config.name} is not promoted: " + "; ".join(refusals))

    previous = read_release(store, config.name)
    prefix = model_prefix(config.name, reference["version"])
    event = {
        "event": "released",
        "version": reference["version"],
        "previous_version": previous["version"] if previous else None,
        "by": ctx.run.meta.get("started_by"),
        "run": ctx.run.uri,
    }
    # A retry after the pointer moved must not log the release twice.
    already = previous is not None and previous["version"] == reference["version"]
    if not already:
        chained = append_release(store, prefix, reference["sha256"], event)
        pointer = {
            "schema": "tuneline/production/1",
            "name": config.name,
            "version": reference["version"],
            "manifest": reference["uri"],
            "manifest_sha256": reference["sha256"],
            "release_sha256": chained,
            "previous_version": event["previous_version"],
            "released_at": now(),
        }
        store.put_bytes(
            f"models/{config.name}/production.json", json.dumps(pointer, indent=1).encode()
        )
    return ctx.record(
        f"{config.name} {reference['version']} is released",
        [measure("items_that_refuse", len(refusals), "items", "==", 0)],
    )
