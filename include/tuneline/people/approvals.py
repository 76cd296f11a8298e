"""Write the answers of people in Airflow into the run: waivers and approvals.

The name with an answer is the user that Airflow recorded, never one that somebody typed.
"""

from __future__ import annotations

from tuneline.artifacts import answers
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


def record_waivers(run: Run, by: str | None, approval: answers.Approval | None = None) -> None:
    """Write `waivers.json`: every waiver of the configuration and who stands for it.

    `by` is the user who started the run; None if a schedule did, and then no waiver counts.
    """
    if not run.config.waivers:
        return
    critical = {waiver.item for waiver in critical_waivers(run)}

    entries = [
        answers.RecordedWaiver(
            item=waiver.item,
            limit=waiver.limit,
            reason=waiver.reason,
            by=by,
            at=now(),
            approval=approval if waiver.item in critical else None,
        )
        for waiver in run.config.waivers
    ]
    answers.WAIVERS.put(run, answers.Waivers(waivers=entries))


def note_question(run: Run, subject: str) -> str:
    """Note and hash what a question is about; UserError if it is a release without a manifest."""
    if subject == ABOUT_WAIVERS:
        about = answers.waivers_sha256(run)
    else:
        reference = MANIFEST_REF.find(run)
        if reference is None:
            raise UserError(f"{run.uri} has no manifest to approve; run lineage first")
        about = reference.sha256
    earlier = answers.APPROVALS.find(run) or answers.Approvals()
    kept = earlier.model_copy(update={"asked": {**earlier.asked, subject: about}})
    answers.APPROVALS.put(run, kept)
    return about


def record_approval(
    run: Run, subject: str, decision: str, person: answers.Person, reason: str = ""
) -> answers.Approval:
    """Record an answer, with the hash of what was asked; UserError if it can't be given so."""
    reason = reason.strip()
    why = answers.why_not(run, person) if decision == YES else answers.stranger(run, person)
    if why:
        raise UserError(f"{subject}: {why}")
    if decision == YES and subject in _NEEDS_REASON and len(reason) < _LEAST_REASON:
        what, about = _NEEDS_REASON[subject]
        raise UserError(
            f"{subject}: {what} needs a reason of at least {_LEAST_REASON} characters{about}; "
            "answer again"
        )
    earlier = answers.APPROVALS.find(run) or answers.Approvals()
    answer = answers.Approval(
        subject=subject,
        decision=decision,
        by=person.name,
        by_id=person.id,
        at=now(),
        reason=reason,
        about=earlier.asked.get(subject),
    )
    kept = earlier.model_copy(update={"approvals": [*earlier.approvals, answer]})
    answers.APPROVALS.put(run, kept)
    return answer
