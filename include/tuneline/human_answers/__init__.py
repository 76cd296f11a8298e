"""Write the answers of people in Airflow into the run: waivers and approvals.

The name beside an answer is the user that Airflow recorded, never one that somebody typed. Votes
of a review lie in `ballots`, the forms and files that take them beside it.
"""

from __future__ import annotations

from tuneline.artifacts.people import (
    APPROVALS,
    WAIVERS,
    Approval,
    Approvals,
    RecordedWaiver,
    Waivers,
)
from tuneline.catalogue import Severity, get_item
from tuneline.config import Waiver
from tuneline.run import Run, now


def critical_waivers(run: Run) -> list[Waiver]:
    """Return the waivers of a run that a person has to approve."""
    return [w for w in run.config.waivers if get_item(w.item).severity == Severity.CRITICAL]


def record_waivers(run: Run, by: str | None, approved_by: str | None = None) -> None:
    """Write `waivers.json`: every waiver of the configuration and who stands for it.

    Args:
        run: the run.
        by: the user who started the run with these waivers; None if a schedule did, and
            then no waiver counts.
        approved_by: the user who approved the critical ones; None if nobody did.
    """
    if not run.config.waivers:
        return
    critical = {waiver.item for waiver in critical_waivers(run)}
    entries = [
        RecordedWaiver(
            item=waiver.item,
            reason=waiver.reason,
            by=by,
            at=now(),
            critical_approved_by=approved_by if waiver.item in critical else None,
        )
        for waiver in run.config.waivers
    ]
    WAIVERS.put(run, Waivers(waivers=entries))


def record_approval(run: Run, subject: str, decision: str, by: str) -> None:
    """Add an answer to `approvals.json`."""
    earlier = APPROVALS.find(run) or Approvals()
    answer = Approval(subject=subject, decision=decision, by=by, at=now())
    APPROVALS.put(run, Approvals(approvals=[*earlier.approvals, answer]))
