"""Write the answers of people in Airflow into the run.

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
ABOUT_RELEASE, ABOUT_LICENSES = "approve_release", "license_audit"
YES = "Approve"
_LEAST_REASON = 10


def critical_waivers(run: Run) -> list[Waiver]:
    """Return the waivers of a run that the approval of its release is asked to accept."""
    return [w for w in run.config.waivers if get_item(w.item).severity == Severity.CRITICAL]


def note_question(run: Run, subject: str) -> str:
    """Note and hash what a question is about; UserError if it is a release without a manifest."""
    reference = MANIFEST_REF.find(run)
    if reference is None:
        raise UserError(f"{run.uri} has no manifest to approve; run lineage first")
    earlier = answers.APPROVALS.find(run) or answers.Approvals()
    kept = earlier.model_copy(update={"asked": {**earlier.asked, subject: reference.sha256}})
    answers.APPROVALS.put(run, kept)
    return reference.sha256


def record_approval(
    run: Run, subject: str, decision: str, person: answers.Person, reason: str = ""
) -> answers.Approval:
    """Record an answer, with the hash of what was asked; UserError if it can't be given so."""
    reason = reason.strip()
    why = answers.why_not(run, person) if decision == YES else answers.stranger(run, person)
    if why:
        raise UserError(f"{subject}: {why}")
    # The answers that need a reason, and what it has to say.
    what, about = "the approval of a licence", ": who read it, and what it allows"
    if subject == ABOUT_RELEASE:
        what = "a release with a waiver of a critical item" if critical_waivers(run) else ""
        about = ""
    if decision == YES and what and len(reason) < _LEAST_REASON:
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
