"""Choose the votes that count: of this review, by people who were asked, the last on each pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.artifacts.evaluation import Ballot, KeyEntry, Vote
from tuneline.errors import UserError
from tuneline.people.ballots import check_marks


@dataclass(frozen=True)
class Cast:
    """The votes of a review, sorted by whether they count.

    Attributes:
        people: votes of people that count, one for each pair and reviewer.
        comments: what reviewers said of all their votes, by reviewer.
        of_earlier_reviews: votes on pairs that were drawn before.
        unassigned: votes on these pairs by each reviewer who was not asked, by name.
    """

    people: list[Vote]
    comments: dict[str, list[str]]
    of_earlier_reviews: int
    unassigned: dict[str, int]

    def left_out(self) -> str:
        """Return a part of a sentence on the votes that do not count, empty if all do."""
        parts = []
        if self.of_earlier_reviews:
            parts.append(
                f"{self.of_earlier_reviews} votes do not count, since they were given to pairs "
                "that were drawn before"
            )
        for name, number in sorted(self.unassigned.items()):
            parts.append(f"{number} votes of {name} do not count, who is not assigned")
        return "".join(f"; {part}" for part in parts)


def sort_votes(
    ballots: Sequence[Ballot],
    review_id: str,
    key: Sequence[KeyEntry],
    reviewers: Sequence[str],
    where: str,
) -> Cast:
    """Sort the votes of a run's ballots by whether they count.

    Args:
        ballots: the ballots in the order in which they were cast.
        review_id: the review that is judged.
        key: its pairs.
        reviewers: the users who were asked; empty if everyone was.
        where: the ballots' place, for an error.

    Raises:
        UserError: if a ballot of this review names a pair or a choice that does not exist, or no
            reviewer.
    """
    pairs = {entry.pair for entry in key}
    people: dict[tuple[int, str], Vote] = {}
    comments: dict[str, list[str]] = {}
    unassigned: dict[str, int] = {}
    earlier = 0
    for ballot in ballots:
        if ballot.judge:
            continue
        if ballot.review_id != review_id:
            earlier += len(ballot.marks)
            continue
        name = ballot.reviewer.strip()
        if not name:
            raise UserError(f"{where}: a ballot of {ballot.at} needs the name of its reviewer")
        check_marks(ballot.marks, pairs, f"{where}, votes of {name}")
        if reviewers and name not in reviewers:
            unassigned[name] = unassigned.get(name, 0) + len(ballot.marks)
            continue
        people.update({(vote.pair, name): vote for vote in _votes(ballot, name)})
        if ballot.comment:
            comments.setdefault(name, []).append(ballot.comment)
    return Cast(list(people.values()), comments, earlier, unassigned)


def _votes(ballot: Ballot, name: str) -> list[Vote]:
    return [
        Vote(
            pair=mark.pair,
            choice=mark.choice,
            reviewer=name,
            source=ballot.source,
            at=ballot.at,
            comment=mark.comment,
        )
        for mark in ballot.marks
    ]
