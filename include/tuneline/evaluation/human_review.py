"""human_review: people who cannot know which model wrote an answer prefer the tuned one.

Method: the votes of a blind A/B review give a win rate with a Wilson interval (ties count half) and
the exact sign test, which decides at a stated level. Both count pairs: the majority of its votes
decides a pair. Votes count if people who were asked gave them to the pairs of this very review.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from tuneline.artifacts.evaluation import (
    BOTH_BAD,
    COUNTED_VOTES,
    REVIEW_KEY,
    REVIEW_PAIRS,
    Ballot,
    KeyEntry,
    ReviewKey,
    ReviewPair,
    ReviewVotes,
    Vote,
)
from tuneline.errors import UserError
from tuneline.evaluation.prepare_review import answers_by_row, shown_as
from tuneline.evidence import Breach, Evidence, Finding, Measurement, measure
from tuneline.people.ballots import FOLDER, ballots, check_marks, documents
from tuneline.statistics import Interval, sign_test, wilson
from tuneline.step_context import StepContext

# The pairs of a review by their number, with the models on their sides.
Key = Mapping[int, KeyEntry]
# Probability with which a review of the size that is said to be needed decides.
_POWER = 0.8
_TITLES = {"base": "base", "released": "released model"}


@dataclass(frozen=True)
class Votes:
    """The votes of a review, sorted by whether they count.

    `people` are those that count, one for each pair and reviewer; `unassigned` those of each
    reviewer who was not asked.
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
    given: Sequence[Ballot],
    review_id: str,
    key: Sequence[KeyEntry],
    reviewers: Sequence[str],
    where: str,
) -> Votes:
    """Choose the votes that count: of this review, by people who were asked, the last on each pair.

    Ballots are in the order in which they were cast; no reviewers means everyone. UserError if a
    ballot of this review names a pair or a choice that does not exist, or no reviewer.
    """
    pairs = {entry.pair for entry in key}
    people: dict[tuple[int, str], Vote] = {}
    comments: dict[str, list[str]] = {}
    unassigned: Counter[str] = Counter()
    earlier = 0
    for ballot in given:
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
            unassigned[name] += len(ballot.marks)
            continue
        shared = {"reviewer": name, "source": ballot.source, "at": ballot.at}
        for mark in ballot.marks:
            people[mark.pair, name] = Vote(**mark.model_dump(), **shared)
        if ballot.comment:
            comments.setdefault(name, []).append(ballot.comment)
    return Votes(list(people.values()), comments, earlier, unassigned)


@dataclass(frozen=True)
class Preference:
    """The pairs won, lost and tied, by the majority of votes; `both_bad` are among the ties."""

    wins: int
    losses: int
    ties: int
    both_bad: int
    reviewers: tuple[str, ...]
    votes: int

    @property
    def pairs(self) -> int:
        """Number of pairs with at least one vote."""
        return self.wins + self.losses + self.ties

    @property
    def win_rate(self) -> Interval:
        """Share of pairs won by the tuned model, ties as halves; at least one pair is needed."""
        return wilson(self.wins + self.ties / 2, self.pairs)

    @property
    def p_value(self) -> float:
        """P-value of the exact sign test: wins and losses are equally likely."""
        return sign_test(self.wins, self.losses)

    def preferred(self, alpha: float, other: str) -> str:
        """Return the model that people prefer at a level, `tuned` or the other; else `neither`."""
        if self.p_value > alpha:
            return "neither"
        return "tuned" if self.wins > self.losses else other

    def pairs_needed(self, alpha: float) -> int:
        """Return how many pairs would show the preference with a probability of 80 %.

        By the sample size of the sign test (Noether, 1987), if it goes on as seen so far, with
        Laplace's share of wins, since a few pairs that agree do not say that all will.
        """
        decided = self.wins + self.losses
        lean = abs((self.wins + 1) / (decided + 2) - 0.5)
        if lean == 0:
            return 0
        normal = NormalDist()
        z = normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(_POWER)
        # Even if all agree, fewer pairs have no p-value below the level.
        least = math.ceil(1 - math.log2(alpha))
        return math.ceil(max(least, z * z / (4 * lean * lean)) * self.pairs / decided)


def preference(vote: Vote, entry: KeyEntry) -> str:
    """Return what a vote prefers: `tuned`, `other`, `tie` or `both bad`."""
    if vote.choice not in ("A", "B"):
        return vote.choice
    chosen = entry.A if vote.choice == "A" else entry.B
    return "tuned" if chosen == "tuned" else "other"


def by_pair(votes: Iterable[Vote]) -> dict[int, list[Vote]]:
    """Return the votes on each pair."""
    found: dict[int, list[Vote]] = {}
    for vote in votes:
        found.setdefault(vote.pair, []).append(vote)
    return found


def count(votes: Sequence[Vote], key: Key) -> Preference:
    """Look up the models behind the sides, and count pairs for and against the tuned model."""
    pairs = {pair: given for pair, given in by_pair(votes).items() if pair in key}
    balances, bad = [], 0
    for pair, given in pairs.items():
        counted = Counter(preference(vote, key[pair]) for vote in given)
        balances.append(counted["tuned"] - counted["other"])
        bad += counted[BOTH_BAD] > len(given) / 2
    return Preference(
        wins=sum(balance > 0 for balance in balances),
        losses=sum(balance < 0 for balance in balances),
        ties=balances.count(0),
        both_bad=bad,
        reviewers=tuple(sorted({vote.reviewer for given in pairs.values() for vote in given})),
        votes=sum(map(len, pairs.values())),
    )


def participation(
    votes: Sequence[Vote], shown: Sequence[int], per_pair: int, short: Breach
) -> list[Measurement]:
    """Measure whether enough people voted on enough pairs; `short`: the breach if not."""
    on_pair = by_pair(votes)
    lacking = sum(len(on_pair.get(pair, ())) < per_pair for pair in shown)
    reviewers = len({vote.reviewer for vote in votes})
    return [
        measure("votes", len(votes), "votes", ">=", 1, on_breach=short),
        measure("reviewers", reviewers, "people", ">=", 1, on_breach=short),
        measure("pairs_voted_on", len(on_pair), "pairs", ">=", len(shown), on_breach=short),
        measure("votes_per_pair_asked_for", per_pair, "votes"),
        measure("pairs_short_of_votes", lacking, "pairs", "==", 0, on_breach=short),
    ]


def compared(outcome: Preference, other: Literal["base", "released"], alpha: float) -> Finding:
    """Compare with the base, which decides, or with the released model.

    Both fail if people prefer the other model at the level. If they lean to the tuned model and
    chance could explain it, the base's is inconclusive and says how many pairs would do; if they do
    not lean to it, more pairs promise nothing and it warns.
    """
    leans, p_value = outcome.wins > outcome.losses, round(outcome.p_value, 5)
    preferred, rate = outcome.preferred(alpha, other), outcome.win_rate
    before = "" if other == "base" else "released_"
    stated = [
        measure(f"{before}win_rate", round(rate.value, 4), "share", noise=round(rate.error, 4)),
        measure(f"{before}win_rate_upper", round(rate.upper, 4), "share"),
        measure(f"{before}win_rate_lower", round(rate.lower, 4), "share"),
        measure(f"{before}wins", outcome.wins, "pairs"),
        measure(f"{before}losses", outcome.losses, "pairs"),
        measure(f"{before}ties", outcome.ties, "pairs"),
        measure(f"{before}both_bad", outcome.both_bad, "pairs"),
        measure(f"{before}preferred", preferred, "model", "!=", other),
    ]
    if other == "released":
        stated.append(measure("released_sign_test_p", p_value, "p"))
    else:
        undecided: Breach = "inconclusive" if leans else "warn"
        stated.append(measure("sign_test_p", p_value, "p", "<=", alpha, on_breach=undecided))
    if other == "base" and preferred == "neither" and leans:
        stated.append(measure("pairs_needed", outcome.pairs_needed(alpha), "pairs"))
    bad = f" ({outcome.both_bad} of them with both answers bad)" if outcome.both_bad else ""
    said = (
        f"{', '.join(outcome.reviewers)} preferred the tuned model on {outcome.wins} of "
        f"{outcome.pairs} pairs and the {_TITLES[other]} on {outcome.losses}, {outcome.ties} "
        f"tied{bad}; win rate {rate.text()}, sign test p = {outcome.p_value:.3f}"
    )
    if preferred == "neither" and leans:
        said += (
            f", which chance could explain at the level {alpha:g}: about "
            f"{outcome.pairs_needed(alpha)} pairs would decide with a probability of 80 %"
        )
    elif preferred == "neither":
        said += ", which does not prefer the tuned model"
    return Finding(stated, said)


def disagreements(votes: Sequence[Vote], key: Key) -> int:
    """Count the pairs on which reviewers prefer different models."""
    return sum(
        len({preference(vote, key[pair]) for vote in given}) > 1
        for pair, given in by_pair(votes).items()
    )


def contradictions(
    pairs: Sequence[ReviewPair], key: Sequence[KeyEntry], answers: Mapping[str, Mapping[str, str]]
) -> list[int]:
    """Return the pairs that do not show the answers which the key says they show."""
    entries = {entry.pair: entry for entry in key}
    wrong = []
    for pair in pairs:
        entry = entries.get(pair.pair)
        if entry is None or any(
            shown_as(answers.get(entry.row_id, {}).get(side, "")) != text
            for side, text in ((entry.A, pair.A), (entry.B, pair.B))
        ):
            wrong.append(pair.pair)
    return wrong


def _why_not(ctx: StepContext) -> str:
    if not ctx.config.evaluation.review:
        return "the review is switched off"
    sheet = REVIEW_PAIRS.find(ctx.run)
    if sheet is not None and not sheet.pairs:
        return "both models answer every row in the same way, so that there is nothing to prefer"
    return "no one answered"


def _too_few(ctx: StepContext) -> Breach:
    """Return what too few votes do to the verdict."""
    required = ctx.config.evaluation.review_required
    if required is None:
        required = ctx.config.profile == "production" and ctx.config.evaluation.review
    return "fail" if required else "warn"


def _refused(ctx: StepContext, wrong: Sequence[int], *, same_review: bool) -> Evidence:
    what = (
        f"pairs {', '.join(map(str, wrong))} show" if wrong else "the pairs of another review show"
    )
    return ctx.conclude(
        f"no vote was counted: {what} other answers than the key says, so it is unknown what "
        "the votes prefer; run prepare_review and the review again",
        [
            measure("pairs_that_contradict_the_key", len(wrong), "pairs", "==", 0),
            measure("key_is_of_this_review", same_review, "flag", "==", True),
        ],
    )


def _conclude(ctx: StepContext, votes: Votes, key: ReviewKey, shown: Sequence[int]) -> Evidence:
    settings = ctx.config.evaluation
    entries = {entry.pair: entry for entry in key.pairs}
    from_files = sum(vote.source in ("csv", "argilla") for vote in votes.people)
    measured = [
        *participation(votes.people, shown, settings.votes_per_pair, _too_few(ctx)),
        measure("votes_from_files", from_files, "votes"),
        measure("votes_of_earlier_reviews", votes.of_earlier_reviews, "votes"),
        measure("votes_not_assigned", sum(votes.unassigned.values()), "votes"),
        measure("sign_test_level", settings.review_alpha, "p"),
    ]
    if not votes.people:
        return ctx.conclude(f"not reviewed: no vote counts{votes.left_out()}", measured)
    others: tuple[Literal["base", "released"], ...] = ("base", "released")
    findings = []
    for other in others:
        of_other = {pair: entry for pair, entry in entries.items() if entry.other == other}
        outcome = count(votes.people, of_other)
        if outcome.pairs:
            findings.append(compared(outcome, other, settings.review_alpha))
    summary = "; ".join(finding.sentence for finding in findings)
    measured += [m for finding in findings for m in finding.measurements]
    split = disagreements(votes.people, entries)
    measured.append(measure("pairs_reviewers_disagree_on", split, "pairs"))
    return ctx.conclude(summary + votes.left_out(), measured)


def run(ctx: StepContext) -> Evidence:
    """Count the votes that reviewers left, or say that there are none."""
    cast = ballots(ctx.run)
    short = _too_few(ctx)
    if not cast:
        nothing = measure("votes", 0, "votes", ">=", 1, on_breach=short)
        return ctx.conclude(f"not reviewed: {_why_not(ctx)}", [nothing])
    key = REVIEW_KEY.read(ctx)
    shown = REVIEW_PAIRS.read(ctx)
    for document in documents(ctx.run):
        document.note(ctx)
    wrong = contradictions(shown.pairs, key.pairs, answers_by_row(ctx))
    if key.review_id != shown.review_id or wrong:
        return _refused(ctx, wrong, same_review=key.review_id == shown.review_id)
    where = ctx.run.store.uri_of(ctx.run.key(FOLDER))
    votes = sort_votes(cast, key.review_id, key.pairs, ctx.config.evaluation.reviewer_names, where)
    COUNTED_VOTES.write(
        ctx, ReviewVotes(review_id=key.review_id, votes=votes.people, comments=votes.comments)
    )
    return _conclude(ctx, votes, key, [pair.pair for pair in shown.pairs])
