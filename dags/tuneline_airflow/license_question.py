"""The question to a person about a licence that the rules leave open, before it is audited."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuneline.artifacts.answers import Person
from tuneline.config import Model
from tuneline.licenses import answers as license_answers
from tuneline.run import Run
from tuneline_airflow.people import RecordedApproval, asked, reason_field

if TYPE_CHECKING:
    from airflow.sdk import Context

    from tuneline.artifacts.governance import AskedLicense


class LicenseApproval(RecordedApproval):
    """A question about licences: the answer and its reason are kept, a rejection stops the run."""

    rejected = "the licences"

    def question(self, run: Run, context: Context) -> str | None:
        """Show the licences of base model and data that wait for a person."""
        from tuneline.licenses.duties import question_text

        waiting = _open(run)
        return question_text(run, waiting) if waiting else None

    def record(self, run: Run, decision: str, by: Person, reason: str) -> None:
        """Keep the answer for the licences that were shown."""
        license_answers.record(run, _open(run), decision, by, reason)


def approve_license(model: Model) -> LicenseApproval:
    """Make the task that asks whether licences which the rules leave open may be used."""
    return LicenseApproval(
        task_id="approve_license",
        **asked(model),
        subject="May these licences be used?",
        params=reason_field("Who read the licence, and what it allows. An approval needs it."),
    )


def _open(run: Run) -> list[AskedLicense]:
    from tuneline.licenses.findings import open_of_run

    return open_of_run(run)
