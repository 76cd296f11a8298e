"""Write the answers of people in Airflow into the run: waivers and approvals.

The name with an answer is the user that Airflow recorded, never one that somebody typed.
"""

from __future__ import annotations

from tuneline.artifacts.answers import (
    APPROVALS,
    WAIVERS,
    Approval,
    Approvals,
    Person,
    RecordedWaiver,
    Waivers,
    stranger,
    waivers_sha256,
    why_not,
)
from tuneline.artifacts.governance import MANIFEST_REF
from tuneline.catalogue import Severity, get_item
from tuneline.config import Waiver
from tuneline.errors import UserError
from tuneline.run import Run, now

# The questions, and the answer that allows what is asked.
ABOUT_WAIVERS, ABOUT_RELEASE, ABOUT_LICENSES = "approve_waivers", "approve_release", "license_audit"
YES = "Approve"
# The answers that need a reason, and what it has to say.
_NEEDS_REASON = {
    ABOUT_WAIVERS: ("accepting a waiver of a critical item", ""),
    ABOUT_LICENSES: ("the approval of a licence", ": who read it, and what it allows"),
}
_LEAST_REASON = 10


def critical_waivers(run: Run) -> list[Waiver]:
    """Return the waivers of a run that a person has to approve."""
    return [w for w in run.config.waivers if get_item(w.item).severity == Severity.CRITICAL]


def record_waivers(run: Run, by: str | None, approval: Approval | None = None) -> None:
    """Write `waivers.json`: every waiver of the configuration and who stands for it.

    `by` is the user who started the run; None if a schedule did, and then no waiver counts.
    """
    if not run.config.waivers:
        return
    critical = {waiver.item for waiver in critical_waivers(run)}

    entries = [
        RecordedWaiver(
            item=waiver.item,
            limit=waiver.limit,
            reason=waiver.reason,
            by=by,
            at=now(),
            approval=approval if waiver.item in critical else None,
        )
        for waiver in run.config.waivers
    ]
    WAIVERS.put(run, Waivers(waivers=entries))


def note_question(run: Run, subject: str) -> str:
    """Note what a question is about when it is put, and return the hash of that.

    Raises:
        UserError: if it is about the release and there is no manifest.
    """
    if subject == ABOUT_WAIVERS:
        about = waivers_sha256(run)
    else:
        reference = MANIFEST_REF.find(run)
        if reference is None:
            raise UserError(f"{run.uri} has no manifest to approve; run lineage first")
        about = reference.sha256
    earlier = APPROVALS.find(run) or Approvals()
    kept = earlier.model_copy(update={"asked": {**earlier.asked, subject: about}})
    APPROVALS.put(run, kept)
    return about


def record_approval(
    run: Run, subject: str, decision: str, person: Person, reason: str = ""
) -> Approval:
    """Add an answer to `approvals.json`, with the hash of what was asked about.

    Raises:
        UserError: if this person has no say, or the answer is a yes that it can't give, or gives
            without a reason that is needed; nothing is recorded then.
    """
    reason = reason.strip()
    why = why_not(run, person) if decision == YES else stranger(run, person)
    if why:
        raise UserError(f"{subject}: {why}")
    if decision == YES and subject in _NEEDS_REASON and len(reason) < _LEAST_REASON:
        what, about = _NEEDS_REASON[subject]
        raise UserError(
            f"{subject}: {what} needs a reason of at least {_LEAST_REASON} characters{about}; "
            "answer again"
        )
    earlier = APPROVALS.find(run) or Approvals()
    answer = Approval(
        subject=subject,
        decision=decision,
        by=person.name,
        by_id=person.id,
        at=now(),
        reason=reason,
        about=earlier.asked.get(subject),
    )
    kept = earlier.model_copy(update={"approvals": [*earlier.approvals, answer]})
    APPROVALS.put(run, kept)
    return answer
