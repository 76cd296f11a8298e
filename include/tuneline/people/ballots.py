"""The ballots of a blind review: who is asked about which pairs, and what they answered.

A ballot is one object, so that reviewers never overwrite each other, and belongs to the review
whose pairs were shown: when the pairs are drawn again, the review has another id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tuneline.artifacts.artifact import RunDocument
from tuneline.artifacts.evaluation import CHOICES, REVIEW_PAIRS, Ballot, Mark, ReviewSheet, Source
from tuneline.errors import UserError
from tuneline.run import Run, now

FOLDER = "evaluation/review_votes"


@dataclass(frozen=True)
class Assignment:
    """Pairs that one reviewer, or (None) whoever may answer, is asked about in one task."""

    reviewer: str | None
    pairs: tuple[int, ...]


def sheet_of(run: Run) -> ReviewSheet:
    """Return the pairs that people vote on; UserError if they were not prepared, or are none."""
    sheet = REVIEW_PAIRS.find(run)
    if sheet is None:
        raise UserError(f"the review of {run.uri} was not prepared; run prepare_review first")
    if not sheet.pairs:
        raise UserError(
            f"the review of {run.uri} has no pairs: both models answer every row in the same way"
        )
    return sheet


def assignments_of(run: Run) -> list[Assignment]:
    """Deal the pairs of a run to its reviewers; nothing if there are no pairs."""
    sheet, settings = REVIEW_PAIRS.find(run), run.config.evaluation
    return deal(
        [pair.pair for pair in sheet.pairs] if sheet else [],
        settings.reviewer_names,
        settings.votes_per_pair,
        settings.review_pairs_per_task,
    )


def deal(
    pairs: Sequence[int], reviewers: Sequence[str], per_pair: int, per_task: int
) -> list[Assignment]:
    """Deal pairs to reviewers in slices, each slice to the next `per_pair` of them in turn.

    Without reviewers each slice is asked about once.
    """
    slices = [tuple(pairs[n : n + per_task]) for n in range(0, len(pairs), per_task)]
    if not reviewers:
        return [Assignment(None, piece) for piece in slices]
    count = min(per_pair, len(reviewers))
    return [
        Assignment(reviewers[(number * count + turn) % len(reviewers)], piece)
        for number, piece in enumerate(slices)
        for turn in range(count)
    ]


def check_marks(marks: Sequence[Mark], pairs: Collection[int], where: str) -> None:
    """Refuse marks that are not choices on the pairs, each once; UserError names the first."""
    seen: set[int] = set()
    for mark in marks:
        if mark.pair not in pairs:
            raise UserError(
                f"{where}: there is no pair {mark.pair}; the pairs are {min(pairs)} to {max(pairs)}"
            )
        if mark.choice not in CHOICES:
            raise UserError(f"{where}, pair {mark.pair}: {mark.choice!r} is not a choice; {_HOW}")
        if mark.pair in seen:
            raise UserError(f"{where}: pair {mark.pair} is voted on twice; keep one vote")
        seen.add(mark.pair)


_HOW = f"choose {', '.join(CHOICES[:-1])} or {CHOICES[-1]}"


def cast(
    run: Run,
    review_id: str,
    reviewer: str,
    source: Source,
    marks: Sequence[Mark],
    *,
    comment: str = "",
    imported_by: str | None = None,
    name: str | None = None,
) -> Ballot:
    """Store a reviewer's votes, as ballot `name`; UserError if one is wrong, or of other pairs."""
    sheet = sheet_of(run)
    where = f"votes of {reviewer}"
    if review_id != sheet.review_id:
        raise UserError(
            f"{where}: they are for the review {review_id or 'without an id'}, but the pairs were "
            f"drawn again since (review {sheet.review_id}); vote on the new pairs"
        )
    if not reviewer.strip():
        raise UserError("votes: a vote needs the name of its reviewer")
    check_marks(marks, {pair.pair for pair in sheet.pairs}, where)
    ballot = Ballot(
        review_id=review_id,
        reviewer=reviewer.strip(),
        source=source,
        at=now(),
        marks=list(marks),
        comment=comment.strip(),
        imported_by=imported_by,
    )
    content = hashlib.sha256(ballot.model_dump_json().encode()).hexdigest()[:12]
    document_of(review_id, name or f"{ballot.at.replace(':', '')}-{content}").put(run, ballot)
    return ballot


def document_of(review_id: str, name: str) -> RunDocument[Ballot]:
    """Return the document of a ballot by its name."""
    return RunDocument(f"{FOLDER}/{review_id}/{name}.json", Ballot)


def documents(run: Run) -> list[RunDocument[Ballot]]:
    """Return the documents of all ballots of a run, of earlier reviews too, in order of name."""
    prefix = run.key("")
    return [
        RunDocument(key.removeprefix(prefix), Ballot) for key in run.store.keys(run.key(FOLDER))
    ]


def ballots(run: Run) -> list[Ballot]:
    """Return all ballots of a run, of earlier reviews too, in the order in which they were cast."""
    found = (document.find(run) for document in documents(run))
    return sorted((ballot for ballot in found if ballot), key=lambda ballot: ballot.at)
