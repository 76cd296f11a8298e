"""Blind A/B review by people: the tuned model against the base.

Proves how often experts who could not know which answer is whose preferred the
tuned model: win rate with a Wilson interval (ties count half), and the exact
sign test over pairs. Several votes on one pair are one opinion on one pair, so
the test counts pairs by their majority and not votes. When nobody voted, that
is what the evidence says.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneline.errors import UserError
from tuneline.evaluation.prepare_review import KEY, PAIRS
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.harness.intervals import Interval, sign_test, wilson
from tuneline.run import StepContext

VOTES = "review_votes.json"
CHOICES = ("A", "B", "tie")


@dataclass(frozen=True)
class Vote:
    """What one reviewer chose on one pair."""

    pair: int
    choice: str
    reviewer: str


@dataclass(frozen=True)
class Outcome:
    """The count of a review, by pair: the majority of its votes decides a pair."""

    wins: int
    losses: int
    ties: int
    reviewers: tuple[str, ...]
    votes: int

    @property
    def pairs(self) -> int:
        """Pairs with at least one vote."""
        return self.wins + self.losses + self.ties

    @property
    def win_rate(self) -> Interval:
        """Share of pairs won by the tuned model, ties as halves."""
        return wilson(self.wins + self.ties / 2, self.pairs)


def read_votes(document: Any, key: Sequence[Mapping[str, Any]], where: str) -> list[Vote]:
    """Read the votes that came in.

    A reviewer who voted twice on a pair changed their mind: the last vote counts.

    Args:
        document: `{"votes": [{"pair": 1, "choice": "A", "reviewer": "alice"}]}`.
        key: the pairs that were shown.
        where: what an error names as the place.

    Raises:
        UserError: the form is wrong, a pair or a choice does not exist, a vote has no name.
    """
    entries = document.get("votes") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise UserError(f'{where}: expected {{"votes": […]}}')
    known = {entry["pair"] for entry in key}
    votes: dict[tuple[int, str], Vote] = {}
    for number, entry in enumerate(entries, 1):
        spot = f"{where}, vote {number}"
        if not isinstance(entry, dict) or entry.get("pair") not in known:
            raise UserError(f"{spot}: there is no such pair; the pairs are 1 to {len(known)}")
        if entry.get("choice") not in CHOICES:
            raise UserError(f"{spot}: choice must be A, B or tie, not {entry.get('choice')!r}")
        reviewer = str(entry.get("reviewer") or "").strip()
        if not reviewer:
            raise UserError(f"{spot}: a vote needs the name of its reviewer")
        vote = Vote(entry["pair"], entry["choice"], reviewer)
        votes[vote.pair, vote.reviewer] = vote
    return list(votes.values())


def count(votes: Sequence[Vote], key: Sequence[Mapping[str, Any]]) -> Outcome:
    """Lift the blindfold: count pairs for and against the tuned model."""
    side = {entry["pair"]: {"A": entry["A"], "B": entry["B"]} for entry in key}
    balance: Counter[int] = Counter()
    for vote in votes:
        who = side[vote.pair].get(vote.choice, "tie")
        balance[vote.pair] += {"tuned": 1, "base": -1, "tie": 0}[who]
    return Outcome(
        wins=sum(value > 0 for value in balance.values()),
        losses=sum(value < 0 for value in balance.values()),
        ties=sum(value == 0 for value in balance.values()),
        reviewers=tuple(sorted({vote.reviewer for vote in votes})),
        votes=len(votes),
    )


def judge(outcome: Outcome, shown: int) -> list[Measurement]:
    """Measurements of a review that people took part in.

    It fails when people clearly prefer the base (the whole interval lies below
    one half), and warns when they do not clearly prefer the tuned model.
    """
    rate = outcome.win_rate
    p = sign_test(outcome.wins, outcome.losses)
    return [
        measure("votes", outcome.votes, "votes", ">=", 1, on_breach="warn"),
        measure("reviewers", len(outcome.reviewers), "people", ">=", 1, on_breach="warn"),
        measure("pairs_voted_on", outcome.pairs, "pairs", ">=", shown, on_breach="warn"),
        measure("win_rate", round(rate.value, 4), "share", noise=round(rate.error, 4)),
        measure("win_rate_upper", round(rate.upper, 4), "share", ">=", 0.5),
        measure("win_rate_lower", round(rate.lower, 4), "share", ">", 0.5, on_breach="warn"),
        measure("sign_test_p", round(p, 5), "p"),
        measure("wins", outcome.wins, "pairs"),
        measure("losses", outcome.losses, "pairs"),
        measure("ties", outcome.ties, "pairs"),
    ]


def run(ctx: StepContext) -> Evidence:
    """Count the votes that reviewers left, or say that there are none."""
    settings = ctx.config.evaluation
    place = ctx.run.key("evaluation", VOTES)
    voted = ctx.run.store.exists(place)
    if not voted:
        why = "nobody answered" if settings.review else "the review is switched off"
        nothing = measure("votes", 0, "votes", ">=", 1, on_breach="warn")
        return ctx.conclude(f"not reviewed: {why}", [nothing])
    pairs = json.loads(ctx.input("prepare_review", PAIRS).read_text())
    hidden = json.loads(ctx.input("prepare_review", f"quarantine/{KEY}").read_text())
    where = ctx.run.store.uri_of(place)
    local = ctx.scratch / VOTES
    ctx.run.store.get_file(place, local)
    ctx.note_input(VOTES, where, local)
    votes = read_votes(json.loads(local.read_text()), hidden["pairs"], where)
    if not votes:
        nothing = measure("votes", 0, "votes", ">=", 1, on_breach="warn")
        return ctx.conclude("not reviewed: nobody answered", [nothing])
    outcome = count(votes, hidden["pairs"])
    (ctx.out / "votes.json").write_text(
        json.dumps({"review_id": hidden["review_id"], "votes": [vars(v) for v in votes]}, indent=1)
    )
    p = sign_test(outcome.wins, outcome.losses)
    summary = (
        f"tuned preferred on {outcome.wins}, base on {outcome.losses}, tie on {outcome.ties} of "
        f"{outcome.pairs} pairs by {', '.join(outcome.reviewers)}; "
        f"win rate {outcome.win_rate.text()}, sign test p = {p:.3f}"
    )
    return ctx.conclude(summary, judge(outcome, len(pairs["pairs"])))
