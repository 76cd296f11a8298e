"""Write the answers of people in Airflow into the run: waivers, approvals, review votes.

The name beside an answer is the user that Airflow recorded, never one that somebody typed.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from tuneline.artifacts.evaluation import REVIEW_PAIRS, REVIEW_VOTES, ReviewSheet, ReviewVotes, Vote
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
from tuneline.errors import UserError
from tuneline.run import Run, now

_VOTE = re.compile(r"^\s*(?:pair\s*)?(\d+)\s*[:=.)\s-]\s*(A|B|tie)\s*$", re.IGNORECASE)


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


def review_sheet(run: Run) -> str:
    """Render the blind pairs of a run as Markdown, for the person who votes.

    Raises:
        UserError: if the pairs were not prepared.
    """
    sheet = _pairs(run)
    parts = [sheet.instructions]
    for pair in sheet.pairs:
        texts = [("Question", pair.prompt), ("A", pair.A), ("B", pair.B)]
        shown = "\n\n".join(f"**{name}**\n\n{_fenced(text)}" for name, text in texts)
        parts.append(f"### Pair {pair.pair}\n\n{shown}")
    return "\n\n".join(parts)


def parse_votes(text: str, pairs: Collection[int]) -> dict[int, str]:
    """Read votes typed one to a line: ``1 A``, ``2: B``, ``pair 3 - tie``.

    Args:
        text: the lines.
        pairs: the numbers of the pairs that were shown.

    Raises:
        UserError: if a line is not a vote, or names a pair that was not shown.
    """
    votes: dict[int, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        found = _VOTE.match(line)
        if not found:
            raise UserError(
                f"votes, line {number}: {line.strip()!r} is not a vote; write the pair and A, B "
                "or tie, like `3 A`"
            )
        pair, choice = int(found[1]), found[2].upper()
        if pair not in pairs:
            raise UserError(
                f"votes, line {number}: there is no pair {pair}; the pairs are "
                f"{min(pairs)} to {max(pairs)}"
            )
        votes[pair] = "tie" if choice == "TIE" else choice
    if not votes:
        raise UserError("votes: no vote was given; write one line for each pair, like `3 A`")
    return votes


def record_votes(run: Run, text: str, reviewer: str) -> int:
    """Write the votes of one reviewer where `human_review` reads them.

    Returns:
        The number of votes.

    Raises:
        UserError: see `parse_votes`.
    """
    votes = [
        Vote(pair=pair, choice=choice, reviewer=reviewer)
        for pair, choice in parse_votes(text, [pair.pair for pair in _pairs(run).pairs]).items()
    ]
    REVIEW_VOTES.put(run, ReviewVotes(votes=votes))
    return len(votes)


def _pairs(run: Run) -> ReviewSheet:
    sheet = REVIEW_PAIRS.find(run)
    if sheet is None:
        raise UserError(f"the review of {run.uri} was not prepared; run prepare_review first")
    return sheet


def _fenced(text: str) -> str:
    # A fence longer than any inside keeps the model's answer from becoming markup.
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
