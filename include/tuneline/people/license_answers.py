"""Answers of people to the question whether a licence may be used."""

from __future__ import annotations

from collections.abc import Sequence

from tuneline.artifacts.licenses import (
    LICENSE_ANSWERS,
    AskedLicense,
    LicenseAnswer,
    LicenseAnswers,
    Subject,
)
from tuneline.artifacts.people import Person
from tuneline.errors import UserError
from tuneline.people.approvals import ABOUT_LICENSES, YES, record_approval
from tuneline.run import Run, now


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
    # First, so that an answer which may not be given leaves nothing.
    record_approval(run, ABOUT_LICENSES, decision, person, why)
    earlier = LICENSE_ANSWERS.find(run) or LicenseAnswers()
    answer = LicenseAnswer(
        asked=list(asked), decision=decision, by=person.name, reason=why, at=now()
    )
    LICENSE_ANSWERS.put(run, LicenseAnswers(answers=[*earlier.answers, answer]))


def last_answers(run: Run) -> dict[Subject, LicenseAnswer]:
    """Return the last answer about each licence, approval or rejection, by its subject."""
    answers = (LICENSE_ANSWERS.find(run) or LicenseAnswers()).answers
    return {asked.subject: answer for answer in answers for asked in answer.asked}


def accepted(run: Run) -> dict[Subject, LicenseAnswer]:
    """Return the approval of each licence by its subject; the last answer counts."""
    return {s: answer for s, answer in last_answers(run).items() if answer.decision == YES}
