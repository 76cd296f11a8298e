"""Files beside the steps' folders that say who stands for a run's exceptions and its release."""

from __future__ import annotations

from pydantic import BaseModel

from tuneline.artifacts.artifact import RunDocument


class RecordedWaiver(BaseModel):
    """A failure that somebody accepts.

    Attributes:
        by: the user who started the run with this waiver; None if a schedule did.
        critical_approved_by: the user who approved the waiver of a critical item.
    """

    item: str
    reason: str
    by: str | None = None
    at: str = ""
    critical_approved_by: str | None = None


class Waivers(BaseModel):
    """Every waiver of a run's configuration, whether it counts or not."""

    waivers: list[RecordedWaiver] = []


class Approval(BaseModel):
    """The answer of a person to the task `subject`."""

    subject: str
    decision: str
    by: str
    at: str


class Approvals(BaseModel):
    """The answers of people, oldest first."""

    approvals: list[Approval] = []


WAIVERS = RunDocument("waivers.json", Waivers)
APPROVALS = RunDocument("approvals.json", Approvals)
