"""Count the pairs of a review for and against the tuned model, and test the preference.

Several votes on one pair are several opinions on the same pair: their majority decides it, and
intervals and tests count pairs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from tuneline.artifacts.evaluation import BOTH_BAD, KeyEntry, Vote
from tuneline.harness.intervals import Interval, sign_test, wilson

# Probability with which a review of the size that is said to be needed decides.
_POWER = 0.8


@dataclass(frozen=True)
class Outcome:
    """The pairs that the tuned model won, lost and tied, each by the majority of its votes.

    Attributes:
        both_bad: pairs on which most votes call both answers bad; they are among the ties.
    """

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

        By the sample size of the sign test (Noether, 1987), if the preference goes on as seen so
        far. The share of wins is Laplace's, (wins + 1) / (decided + 2), since a few pairs that
        agree do not say that all will. Pairs that tie decide nothing and come on top.
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


def score(votes: Sequence[Vote], entry: KeyEntry) -> float:
    """Return what a pair counts: 1 if most of its votes prefer the tuned model, 0, or a half."""
    counted = Counter(preference(vote, entry) for vote in votes)
    balance = counted["tuned"] - counted["other"]
    return 0.5 + 0.5 * (balance > 0) - 0.5 * (balance < 0)


def count(votes: Sequence[Vote], key: Mapping[int, KeyEntry]) -> Outcome:
    """Look up the models behind the sides, and count pairs for and against the tuned model.

    Args:
        votes: the votes that count, one for each pair and reviewer.
        key: the pairs by their number; votes on others are left out.
    """
    pairs = {pair: given for pair, given in by_pair(votes).items() if pair in key}
    scores = [score(given, key[pair]) for pair, given in pairs.items()]
    counted = [vote for given in pairs.values() for vote in given]
    return Outcome(
        wins=scores.count(1.0),
        losses=scores.count(0.0),
        ties=scores.count(0.5),
        both_bad=sum(
            2 * sum(vote.choice == BOTH_BAD for vote in given) > len(given)
            for given in pairs.values()
        ),
        reviewers=tuple(sorted({vote.reviewer for vote in counted})),
        votes=len(counted),
    )
