"""Answers of people to the question whether a licence may be used.

An answer is taken over from the released version for the same thing under the same licence, as
long as the circumstances that licences are judged for have not changed.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.artifacts.answers import Person
from tuneline.artifacts.governance import (
    AUDITED,
    ENGINE_PACKAGES,
    LICENSE_ANSWERS,
    AskedLicense,
    LicenseAnswer,
    LicenseAnswers,
    Subject,
)
from tuneline.artifacts.releases import CONFIG_FILE, Release, released
from tuneline.errors import UserError
from tuneline.people.approvals import ABOUT_LICENSES, YES, record_approval
from tuneline.run import Run, now


def record(
    run: Run, asked: Sequence[AskedLicense], decision: str, person: Person, reason: str | None
) -> None:
    """Keep an answer, beside the run's other approvals, which the release log takes up."""
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


# What `circumstances_of` and `generators_of` read of the configuration.
_CIRCUMSTANCES = "intended_use monthly_users domicile outputs_train_models generated_by".split()
_FOR = ", for version "


@dataclass(frozen=True)
class Acceptance:
    """A licence that a person accepted."""

    by: str
    reason: str


def acceptances(run: Run) -> dict[Subject, Acceptance]:
    """Return what people accepted, by the subject of the question.

    What was answered in this run counts before what the released version brings along, so that a
    rejection ends an earlier approval.
    """
    answered = last_answers(run)
    here = {
        subject: Acceptance(answer.by, answer.reason)
        for subject, answer in answered.items()
        if answer.decision == YES
    }
    release = released(run)
    if release is None or _circumstances(release) != _circumstances_of_run(run):
        return here
    before = {
        subject: found
        for name in (AUDITED.name, ENGINE_PACKAGES.name)
        for subject, found in _accepted_by_release(release, name).items()
        if subject not in answered
    }
    return before | here


def _circumstances_of_run(run: Run) -> dict[str, object]:
    stated = run.config.governance.model_dump(mode="json", include=set(_CIRCUMSTANCES))
    return {"name": run.config.name, **stated}


def _circumstances(release: Release) -> dict[str, object]:
    raw = release.read(CONFIG_FILE)
    config = json.loads(raw) if raw else {}
    governance = config.get("governance") or {}
    return {"name": config.get("name"), **{name: governance.get(name) for name in _CIRCUMSTANCES}}


def _accepted_by_release(release: Release, name: str) -> dict[Subject, Acceptance]:
    raw = release.read(name)
    rows = csv.DictReader(io.StringIO(raw.decode())) if raw else []
    return {
        (row["kind"], row["name"], row["license"]): Acceptance(
            _dated(row["accepted_by"], release.version), row["reason"]
        )
        for row in rows
        if row.get("decision") == "person" and row.get("accepted_by")
    }


def _dated(by: str, version: str) -> str:
    """Return who accepted a licence and for which version, the first one that it was for."""
    return by if _FOR in by else f"{by}{_FOR}{version}"
