"""human_review: people who cannot know which model wrote an answer prefer the tuned one.

Method: the votes of a blind A/B review give a win rate with a Wilson interval (ties count
half) and the exact sign test. Both count pairs and not votes: several votes on one pair are
several opinions on the same pair, and their majority decides it. Without a vote the evidence
says so and warns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.artifacts.evaluation import (
    REVIEW_KEY,
    REVIEW_PAIRS,
    REVIEW_VOTES,
    KeyEntry,
    ReviewVotes,
    Vote,
)
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.harness.intervals import Interval, sign_test, wilson
from tuneline.run import StepContext

CHOICES = ("A", "B", "tie")


@dataclass(frozen=True)
class Outcome:
    """The pairs that the tuned model won, lost and tied, each by the majority of its votes."""

    wins: int
    losses: int
    ties: int
    reviewers: tuple[str, ...]
    votes: int

    @property
    def pairs(self) -> int:
        """Number of pairs with at least one vote."""
        return self.wins + self.losses + self.ties

    @property
    def win_rate(self) -> Interval:
        """Share of pairs won by the tuned model, ties as halves."""
        return wilson(self.wins + self.ties / 2, self.pairs)

    @property
    def p_value(self) -> float:
        """P-value of the sign test: wins and losses are equally likely."""
        return sign_test(self.wins, self.losses)


def check_votes(votes: Sequence[Vote], key: Sequence[KeyEntry], where: str) -> list[Vote]:
    """Return the votes that count: a reviewer's last vote on each pair.

    Args:
        votes: the votes in the order in which they were cast.
        key: the pairs that were shown.
        where: the votes' place, for an error.

    Raises:
        UserError: if a pair or a choice does not exist, or a vote has no name.
    """
    known = {entry.pair for entry in key}
    last: dict[tuple[int, str], Vote] = {}
    for number, vote in enumerate(votes, 1):
        spot = f"{where}, vote {number}"
        if vote.pair not in known:
            raise UserError(f"{spot}: there is no such pair; the pairs are 1 to {len(known)}")
        if vote.choice not in CHOICES:
            raise UserError(f"{spot}: choice must be A, B or tie, not {vote.choice!r}")
        reviewer = vote.reviewer.strip()
        if not reviewer:
            raise UserError(f"{spot}: a vote needs the name of its reviewer")
        last[vote.pair, reviewer] = vote.model_copy(update={"reviewer": reviewer})
    return list(last.values())


def count(votes: Sequence[Vote], key: Sequence[KeyEntry]) -> Outcome:
    """Look up the models behind the sides, and count pairs for and against the tuned model."""
    sides = {entry.pair: {"A": entry.A, "B": entry.B} for entry in key}
    balance: Counter[int] = Counter()
    for vote in votes:
        preferred = sides[vote.pair].get(vote.choice)
        balance[vote.pair] += {"tuned": 1, "base": -1}.get(preferred or "tie", 0)
    return Outcome(
        wins=sum(value > 0 for value in balance.values()),
        losses=sum(value < 0 for value in balance.values()),
        ties=sum(value == 0 for value in balance.values()),
        reviewers=tuple(sorted({vote.reviewer for vote in votes})),
        votes=len(votes),
    )


def judge(outcome: Outcome, shown: int) -> list[Measurement]:
    """Measure a review that people took part in.

    It fails if people clearly prefer the base (the whole interval lies below one half), and
    warns if they do not clearly prefer the tuned model.

    Args:
        outcome: the result, with at least one vote.
        shown: number of pairs that were shown.
    """
    rate = outcome.win_rate
    return [
        measure("votes", outcome.votes, "votes", ">=", 1, on_breach="warn"),
        measure("reviewers", len(outcome.reviewers), "people", ">=", 1, on_breach="warn"),
        measure("pairs_voted_on", outcome.pairs, "pairs", ">=", shown, on_breach="warn"),
        measure("win_rate", round(rate.value, 4), "share", noise=round(rate.error, 4)),
        measure("win_rate_upper", round(rate.upper, 4), "share", ">=", 0.5),
        measure("win_rate_lower", round(rate.lower, 4), "share", ">", 0.5, on_breach="warn"),
        measure("sign_test_p", round(outcome.p_value, 5), "p"),
        measure("wins", outcome.wins, "pairs"),
        measure("losses", outcome.losses, "pairs"),
        measure("ties", outcome.ties, "pairs"),
    ]


def run(ctx: StepContext) -> Evidence:
    """Count the votes that reviewers left, or say that there are none."""
    cast = REVIEW_VOTES.find(ctx.run)
    if cast is None or not cast.votes:
        off = cast is None and not ctx.config.evaluation.review
        why = "the review is switched off" if off else "nobody answered"
        nothing = measure("votes", 0, "votes", ">=", 1, on_breach="warn")
        return ctx.conclude(f"not reviewed: {why}", [nothing])
    shown, key = REVIEW_PAIRS.read(ctx), REVIEW_KEY.read(ctx)
    REVIEW_VOTES.note(ctx)
    votes = check_votes(cast.votes, key.pairs, REVIEW_VOTES.uri(ctx.run))
    kept = ReviewVotes(votes=votes).model_dump()
    ctx.write_json("votes.json", {"review_id": key.review_id, **kept})
    outcome = count(votes, key.pairs)
    summary = (
        f"{', '.join(outcome.reviewers)} preferred the tuned model on {outcome.wins} of "
        f"{outcome.pairs} pairs and the base on {outcome.losses}, {outcome.ties} tied; "
        f"win rate {outcome.win_rate.text()}, sign test p = {outcome.p_value:.3f}"
    )
    return ctx.conclude(summary, judge(outcome, len(shown.pairs)))
