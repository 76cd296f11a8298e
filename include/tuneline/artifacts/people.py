"""Files beside the steps' folders that say who stands for a run's exceptions and its release."""

from __future__ import annotations

from pydantic import BaseModel

from tuneline.artifacts.artifact import RunDocument


class RecordedWaiver(BaseModel):
    """A failure that somebody accepts.

    Attributes:
        item: the item that may fail.
        reason: why its failure is acceptable.
        by: who started the run with this waiver; None if a schedule did.
        at: when it was recorded, RFC 3339.
        critical_approved_by: who approved the waiver of a critical item.
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
    """An answer to a question that the run asked a person.

    Attributes:
        subject: the task that asked.
        decision: the answer.
        by: who answered.
        at: when, RFC 3339.
    """

    subject: str
    decision: str
    by: str
    at: str


class Approvals(BaseModel):
    """The answers of people, oldest first."""

    approvals: list[Approval] = []


WAIVERS = RunDocument("waivers.json", Waivers)
APPROVALS = RunDocument("approvals.json", Approvals)
