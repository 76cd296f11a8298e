"""promote: move the pointer of the run's profile to its model version, or refuse and say why.

Only a run under `profile: production` moves `production.json`, and it has to meet the rules that
the model has in the store; any other run moves `staging.json`.

Who approved and who accepts which failure is logged with the release, and the statement of
`lineage`, which has no place in the manifest, is written beside it.
"""

from __future__ import annotations

from tuneline.artifacts.answers import APPROVALS, Approvals, ModelRules, rules_key
from tuneline.artifacts.deployment import ENGINE_IDENTITY
from tuneline.artifacts.governance import MANIFEST_REF, ManifestRef
from tuneline.artifacts.release_log import Approved, Event, Released, Waived
from tuneline.artifacts.releases import pointer_of, read_release
from tuneline.catalogue import ITEMS
from tuneline.config import Waiver
from tuneline.errors import UserError
from tuneline.evidence import Measurement, Record, measure
from tuneline.governance.documents.statements import lock_lineage_statement, write_lineage_statement
from tuneline.governance.release.approvals import approver, is_needed, refusal
from tuneline.governance.release.pointer import Pointed, complete, last_move, read_pointer, record
from tuneline.governance.release.prune import claim_release
from tuneline.governance.release.registry import register
from tuneline.governance.release.verify import promotion_differences
from tuneline.people.approvals import critical_waivers
from tuneline.run import Run
from tuneline.step_context import StepContext
from tuneline.store import Changed
from tuneline.verdicts import Freshness, checklist, counting_waivers, looser_limits


def refusals(ctx: StepContext, manifest_uri: str) -> list[str]:
    """Return what stands in the way of the release, one sentence for each reason."""
    config = ctx.config
    fresh = Freshness(ctx.run, deep=True)
    found = [
        f"{row.item} ({row.verdict}: {row.because})"
        for row in checklist(ctx.run)
        if row.stops_release and fresh.stale(row.item) is None
    ]
    found += fresh.outdated(item.id for item in ITEMS)
    if not ENGINE_IDENTITY.exists(ctx):
        why = ctx.entry(ENGINE_IDENTITY.step).summary
        found.append(f"the engine {config.deployment.engine} was not built: {why}")
    if is_needed(ctx.run) and (unapproved := refusal(ctx.run)):
        found.append(unapproved)
    return found + promotion_differences(manifest_uri, config.governance)


def people(run: Run) -> list[Event]:
    """Return what people have said about a run: their answers, and the waivers that count."""
    answers = APPROVALS.find(run) or Approvals()
    told = {"subject", "decision", "by", "reason", "about"}
    approved = [
        Approved(answered_at=answer.at, **answer.model_dump(include=told))
        for answer in answers.approvals
    ]
    looser: dict[Waiver | None, list[str]] = {}
    for found in looser_limits(run):
        looser.setdefault(found.waiver, []).append(str(found.looser))
    waived = [
        Waived(
            item=one.item,
            limit="; ".join(looser.get(one, [])) or None,
            measurement=None if one.limit else str(one),
            reason=one.reason,
            by=str(run.meta["started_by"]),
            approved_by=approver(run) if one in critical_waivers(run) else None,
        )
        for one in counting_waivers(run)
        if one.measurement or one in looser
    ]
    return [*waived, *approved]


def release(ctx: StepContext, reference: ManifestRef, pointed: Pointed) -> None:
    """Log the release and move the pointer."""
    claim_release(ctx.run)
    previous, follows = last_move(pointed)
    statement = write_lineage_statement(ctx, reference)
    released = Released(
        previous_version=previous,
        follows=follows,
        by=ctx.run.meta.get("started_by"),
        run=ctx.run.uri,
        approved_by=approver(ctx.run) if is_needed(ctx.run) else None,
        lineage_sha256=statement,
    )
    events = [*people(ctx.run), released]
    if pointed.which == "production":
        rules = ModelRules.after(ctx.run, ModelRules.of(ctx.run))
        document = rules.model_dump_json(indent=1, by_alias=True)
        pointed.store.put_bytes(rules_key(pointed.name), document.encode())
    try:
        record(pointed, reference.version, reference.sha256, events)
    except Changed:
        now_released = read_release(pointed.store, pointed.name, pointed.which)
        winner = now_released.version if now_released else "another version"
        raise UserError(
            f"{pointed.name} is not promoted: {winner} was released while this promotion "
            f"ran, and this run was compared with {previous or 'no release'}; run promote again "
            f"to release {reference.version} over it"
        ) from None


def run(ctx: StepContext) -> Record:
    """Promote the run's model version.

    A version that was released before stays where it is: a retried task moves nothing a second
    time, and does not take the place of a version that was released since.
    """
    config, store = ctx.config, ctx.run.store
    reference = MANIFEST_REF.read(ctx)
    pointed = read_pointer(store, config.name, pointer_of(config.profile))
    complete(pointed)
    reasons = refusals(ctx, reference.uri)
    if reasons:
        raise UserError(f"{config.name} is not promoted: " + "; ".join(reasons))

    pointer = pointed.pointer
    moves = pointer.history if pointer else []
    done = next((move for move in moves if move.version == reference.version), None)
    summary = f"{config.name} {reference.version} is released to {pointed.which}"
    registry: list[Measurement] = []
    locks: list[Measurement] = []
    if pointer is None or done is None:
        release(ctx, reference, pointed)
        locks = lock_lineage_statement(ctx, reference.version)
    if pointer is None or done is None or pointer.version == reference.version:
        registered, registry = register(ctx.run, reference)
        summary += registered
    else:
        summary = (
            f"{config.name} {reference.version} was released at {done.at}, and "
            f"{pointer.version} is released now"
        )
    refused = measure("items_that_refuse", len(reasons), "items", "==", 0)
    return ctx.record(summary, [refused, *locks, *registry])
