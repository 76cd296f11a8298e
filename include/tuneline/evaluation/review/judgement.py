"""State what a review found as measurements, whose rules decide the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tuneline.artifacts.evaluation import KeyEntry, Vote
from tuneline.evaluation.review.agreement import krippendorff_alpha
from tuneline.evaluation.review.counts import Outcome, by_pair, preference
from tuneline.evidence import Breach, Measurement, measure

Key = Mapping[int, KeyEntry]


def participation(
    votes: Sequence[Vote], shown: Sequence[int], per_pair: int, short: Breach
) -> list[Measurement]:
    """Measure whether enough people voted on enough pairs.

    Args:
        votes: the votes that count.
        shown: the pairs that were shown.
        per_pair: votes that each pair needs.
        short: what too few votes do to the verdict.
    """
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


def against_base(outcome: Outcome, alpha: float) -> list[Measurement]:
    """Measure the comparison with the base, which decides.

    It fails if people prefer the base at the level. If they lean to the tuned model and chance
    could explain it, it is inconclusive and says how many pairs would do; if they do not lean to
    it, more pairs promise nothing and it warns.
    """
    leans = outcome.wins > outcome.losses
    undecided: Breach = "inconclusive" if leans else "warn"
    preferred = outcome.preferred(alpha, "base")
    stated = [
        *_counts(outcome, ""),
        measure("preferred", preferred, "model", "!=", "base"),
        measure(
            "sign_test_p",
            round(outcome.p_value, 5),
            "p",
            "<=",
            alpha,
            on_breach=undecided,
        ),
    ]
    if preferred == "neither" and leans:
        stated.append(measure("pairs_needed", outcome.pairs_needed(alpha), "pairs"))
    return stated


def against_released(outcome: Outcome, alpha: float) -> list[Measurement]:
    """Measure the comparison with the released model: it fails if people prefer that one."""
    preferred = outcome.preferred(alpha, "released")
    return [
        *_counts(outcome, "released_"),
        measure("released_sign_test_p", round(outcome.p_value, 5), "p"),
        measure("released_preferred", preferred, "model", "!=", "released"),
    ]


def agreement(votes: Sequence[Vote], key: Key) -> list[Measurement]:
    """Measure how far reviewers agree on the pairs that several voted on."""
    several = {pair: given for pair, given in by_pair(votes).items() if len(given) > 1}
    if not several:
        return []
    units = [[preference(vote, key[pair]) for vote in given] for pair, given in several.items()]
    alpha = krippendorff_alpha(units)
    rounded = None if alpha is None else round(alpha, 4)
    return [
        measure("pairs_with_several_votes", len(several), "pairs"),
        measure("krippendorff_alpha", rounded, "alpha"),
    ]


def _counts(outcome: Outcome, prefix: str) -> list[Measurement]:
    rate = outcome.win_rate
    return [
        measure(f"{prefix}win_rate", round(rate.value, 4), "share", noise=round(rate.error, 4)),
        measure(f"{prefix}win_rate_upper", round(rate.upper, 4), "share"),
        measure(f"{prefix}win_rate_lower", round(rate.lower, 4), "share"),
        measure(f"{prefix}wins", outcome.wins, "pairs"),
        measure(f"{prefix}losses", outcome.losses, "pairs"),
        measure(f"{prefix}ties", outcome.ties, "pairs"),
        measure(f"{prefix}both_bad", outcome.both_bad, "pairs"),
    ]
