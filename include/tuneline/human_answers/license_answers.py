"""Answers of people to the question whether a licence may be used."""

from __future__ import annotations

from collections.abc import Sequence

from tuneline.artifacts.licenses import (
    LICENSE_ANSWERS,
    AskedLicense,
    LicenseAnswer,
    LicenseAnswers,
)
from tuneline.artifacts.people import Person
from tuneline.errors import UserError
from tuneline.human_answers import YES, record_approval
from tuneline.run import Run, now

SUBJECT = "license_audit"
# As long as the reason of a waiver.
SHORTEST_REASON = 10


def record(
    run: Run, asked: Sequence[AskedLicense], decision: str, person: Person, reason: str | None
) -> None:
    """Keep an answer, beside the run's other approvals, which the release log takes up.

    Args:
        run: the run.
        asked: the licences that were shown.
        decision: `Approve` or `Reject`.
        person: who answered.
        reason: why; an approval needs one.

    Raises:
        UserError: if there is nothing to answer, an approval has no reason, or this person may
            not give it.
    """
    why = (reason or "").strip()
    if not asked:
        raise UserError(f"{run.uri}: no licence of this run waits for a person")
    if decision == YES and len(why) < SHORTEST_REASON:
        raise UserError(
            "the approval of a licence needs a reason of at least "
            f"{SHORTEST_REASON} characters: who read it, and what it allows"
        )
    # First, so that an answer which may not be given leaves nothing.
    record_approval(run, SUBJECT, decision, person, why)
    earlier = LICENSE_ANSWERS.find(run) or LicenseAnswers()
    answer = LicenseAnswer(
        asked=list(asked), decision=decision, by=person.name, reason=why, at=now()
    )
    LICENSE_ANSWERS.put(run, LicenseAnswers(answers=[*earlier.answers, answer]))


def accepted(run: Run) -> dict[tuple[str, str, str], LicenseAnswer]:
    """Return the approval of each licence by its subject; the last answer counts."""
    found: dict[tuple[str, str, str], LicenseAnswer] = {}
    for answer in (LICENSE_ANSWERS.find(run) or LicenseAnswers()).answers:
        for asked in answer.asked:
            found.pop(asked.subject, None)
            if answer.decision == YES:
                found[asked.subject] = answer
    return found
