"""promote: move the release pointer to the run's model version, or refuse and say why.

Refuses unless all critical items reached a verdict that allows release, the shipping engine was
built, the manifest verifies at this moment, and the approval that the run asks for was given.
"""

from __future__ import annotations

from typing import Any

from tuneline.artifacts.deployment import ENGINE_IDENTITY
from tuneline.artifacts.governance import MANIFEST_REF, ReleasePointer
from tuneline.artifacts.people import APPROVALS, Approvals
from tuneline.artifacts.releases import model_prefix, read_release
from tuneline.errors import UserError
from tuneline.evidence import Record, measure
from tuneline.governance.release.manifest import append_release, verify, write_release
from tuneline.run import Run, StepContext, now
from tuneline.verdicts import checklist

# The question about the release in Airflow, and the answer that allows it.
QUESTION, YES = "approve_release", "Approve"


def approver(run: Run) -> str | None:
    """Return who approved the release, None if the last answer is a no or there is none."""
    answers = APPROVALS.find(run) or Approvals()
    asked = [answer for answer in answers.approvals if answer.subject == QUESTION]
    return asked[-1].by if asked and asked[-1].decision == YES else None


def refusals(ctx: StepContext, manifest_uri: str) -> list[str]:
    """Return what stands in the way of the release, one sentence for each reason."""
    config = ctx.config
    found = [
        f"{row.item} ({row.verdict}: {row.because})"
        for row in checklist(ctx.run)
        if row.stops_release
    ]
    if not ENGINE_IDENTITY.exists(ctx):
        why = ctx.entry(ENGINE_IDENTITY.step).summary
        found.append(f"the engine {config.deployment.engine} was not built: {why}")
    if config.approval and approver(ctx.run) is None:
        found.append(
            "nobody has approved the release, which the run asks for (`approval: true`); "
            f"answer the task {QUESTION} in Airflow"
        )
    return found + verify(manifest_uri)


def run(ctx: StepContext) -> Record:
    """Promote the run's model version.

    Raises:
        UserError: if an item, the engine, the approval or the manifest stands in the way;
            the pointer has not moved.
    """
    config, store = ctx.config, ctx.run.store
    reference = MANIFEST_REF.read(ctx)
    reasons = refusals(ctx, reference.uri)
    if reasons:
        raise UserError(f"{config.name} is not promoted: " + "; ".join(reasons))

    previous = read_release(store, config.name)
    # A retry after the pointer has moved must not log the release twice.
    if previous is None or previous.version != reference.version:
        previous_version = previous.version if previous else None
        event: dict[str, Any] = {
            "event": "released",
            "version": reference.version,
            "previous_version": previous_version,
            "by": ctx.run.meta.get("started_by"),
            "run": ctx.run.uri,
        }
        if config.approval:
            event["approved_by"] = approver(ctx.run)
        prefix = model_prefix(config.name, reference.version)
        pointer = ReleasePointer(
            name=config.name,
            version=reference.version,
            manifest=reference.uri,
            manifest_sha256=reference.sha256,
            release_sha256=append_release(store, prefix, reference.sha256, event),
            previous_version=previous_version,
            released_at=now(),
        )
        write_release(store, pointer)
    return ctx.record(
        f"{config.name} {reference.version} is released",
        [measure("items_that_refuse", len(reasons), "items", "==", 0)],
    )
