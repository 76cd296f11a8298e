"""What people answered in Airflow, written into the run: waivers, approvals, review votes.

Who answered is the user that Airflow recorded, never a name that somebody typed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from tuneline.catalogue import Severity, get_item
from tuneline.config import Waiver
from tuneline.errors import UserError
from tuneline.run import Run, now
from tuneline.store import NotThere

WAIVERS = "waivers.json"
APPROVALS = "approvals.json"
REVIEW_VOTES = "evaluation/review_votes.json"
REVIEW_PAIRS = "evaluation/prepare_review/pairs.json"

_VOTE = re.compile(r"^\s*(?:pair\s*)?(\d+)\s*[:=.)\s-]\s*(A|B|tie)\s*$", re.IGNORECASE)


def critical_waivers(run: Run) -> list[Waiver]:
    """The waivers of a run that a person has to approve."""
    return [w for w in run.config.waivers if get_item(w.item).severity == Severity.CRITICAL]


def record_waivers(run: Run, by: str | None, approved_by: str | None = None) -> None:
    """Write `waivers.json`: every waiver of the configuration and who stands for it.

    Args:
        run: the run.
        by: who started the run with these waivers; None when a schedule did, and then
            no waiver counts.
        approved_by: who approved the critical ones; None when nobody did.
    """
    if not run.config.waivers:
        return
    critical = {waiver.item for waiver in critical_waivers(run)}
    entries = [
        {
            "item": waiver.item,
            "reason": waiver.reason,
            "by": by,
            "at": now(),
            "critical_approved_by": approved_by if waiver.item in critical else None,
        }
        for waiver in run.config.waivers
    ]
    _put(run, WAIVERS, {"waivers": entries})


def record_approval(run: Run, subject: str, decision: str, by: str) -> None:
    """Add an answer to `approvals.json`."""
    try:
        document = json.loads(run.store.get_bytes(run.key(APPROVALS)))
    except NotThere:
        document = {"approvals": []}
    document["approvals"].append({"subject": subject, "decision": decision, "by": by, "at": now()})
    _put(run, APPROVALS, document)


def review_sheet(run: Run) -> str:
    """The blind pairs of a run as Markdown, for the person who votes.

    Raises:
        UserError: the pairs were not prepared.
    """
    sheet = _pairs(run)
    parts = [str(sheet["instructions"])]
    for pair in sheet["pairs"]:
        texts = [("Question", pair["prompt"]), ("A", pair["A"]), ("B", pair["B"])]
        shown = "\n\n".join(f"**{name}**\n\n{_quoted(str(text))}" for name, text in texts)
        parts.append(f"### Pair {pair['pair']}\n\n{shown}")
    return "\n\n".join(parts)


def parse_votes(text: str, pairs: Sequence[int]) -> dict[int, str]:
    """Read votes typed one to a line: ``1 A``, ``2: B``, ``pair 3 - tie``.

    Raises:
        UserError: a line is none of these, or names a pair that was not shown.
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
        How many votes there are.

    Raises:
        UserError: see `parse_votes`.
    """
    votes = parse_votes(text, [pair["pair"] for pair in _pairs(run)["pairs"]])
    entries = [
        {"pair": pair, "choice": choice, "reviewer": reviewer} for pair, choice in votes.items()
    ]
    _put(run, REVIEW_VOTES, {"votes": entries})
    return len(entries)


def _pairs(run: Run) -> Any:
    try:
        return json.loads(run.store.get_bytes(run.key(REVIEW_PAIRS)))
    except NotThere:
        raise UserError(
            f"the review of {run.uri} was not prepared; run prepare_review first"
        ) from None


def _quoted(text: str) -> str:
    # A fence longer than any inside keeps the model's answer from becoming markup.
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _put(run: Run, name: str, document: dict[str, Any]) -> None:
    run.store.put_bytes(run.key(name), json.dumps(document, indent=1, ensure_ascii=False).encode())
