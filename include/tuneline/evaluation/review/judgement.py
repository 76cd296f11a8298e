"""State what a review found as measurements, whose rules decide the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuneline.artifacts.evaluation import KeyEntry, Vote
from tuneline.evaluation.review.agreement import krippendorff_alpha
from tuneline.evaluation.review.counts import Outcome, by_pair, preference, score, steadiness
from tuneline.evaluation.review.prediction_powered import (
    LEAST_PAIRS,
    PredictionPowered,
    prediction_powered,
)
from tuneline.evidence import Breach, Measurement, measure
from tuneline.harness.intervals import Interval

Key = Mapping[int, KeyEntry]


@dataclass(frozen=True)
class Judge:
    """What a judge's votes add.

    Attributes:
        names: the models that voted.
        votes: number of their votes.
        agreement: share of the pairs that people and the judge both decided alike, None without a
            pair that both voted on.
        compared: number of those pairs.
        steadiness: share of its votes that stayed with their answer when the sides were swapped,
            None if it was not asked twice.
        combined: the win rate from both kinds of votes, None if there are too few.
    """

    names: tuple[str, ...]
    votes: int
    agreement: float | None
    compared: int
    steadiness: float | None
    combined: PredictionPowered | None


def consult(people: Sequence[Vote], judges: Sequence[Vote], key: Key, alpha: float) -> Judge | None:
    """Combine the votes of people with those of a judge; None without a judge."""
    if not judges:
        return None
    human = {p: score(votes, key[p]) for p, votes in by_pair(people).items() if p in key}
    model = {p: score(votes, key[p]) for p, votes in by_pair(judges).items() if p in key}
    both, alone = sorted(set(human) & set(model)), sorted(set(model) - set(human))
    combined = None
    if len(both) >= LEAST_PAIRS and len(alone) > 1:
        combined = prediction_powered(
            [human[p] for p in both], [model[p] for p in both], [model[p] for p in alone], alpha
        )
    return Judge(
        tuple(sorted({vote.reviewer for vote in judges})),
        len(judges),
        sum(human[p] == model[p] for p in both) / len(both) if both else None,
        len(both),
        steadiness([vote.steady for vote in judges]),
        combined,
    )


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


def against_base(outcome: Outcome, alpha: float, judge: Judge | None) -> list[Measurement]:
    """Measure the comparison with the base, which decides.

    It fails if people prefer the base at the level. If they lean to the tuned model and chance
    could explain it, it is inconclusive and says how many pairs would do; if they do not lean to
    it, more pairs promise nothing and it warns. A judge's votes inform and decide nothing.
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
    return [*stated, *(_combined(judge) if judge else [])]


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


def _combined(judge: Judge) -> list[Measurement]:
    agreed = None if judge.agreement is None else round(judge.agreement, 4)
    steady = None if judge.steadiness is None else round(judge.steadiness, 4)
    stated = [
        measure("judge", ", ".join(judge.names), "model"),
        measure("judge_votes", judge.votes, "votes"),
        measure("judge_agrees_with_people", agreed, "share"),
        measure("judge_keeps_its_choice_when_swapped", steady, "share"),
    ]
    if judge.combined is None:
        return stated
    rate: Interval = judge.combined.win_rate
    return [
        *stated,
        measure("judge_weight", judge.combined.weight, "share"),
        measure("pairs_judged_alone", judge.combined.judged, "pairs"),
        measure("combined_win_rate", round(rate.value, 4), "share", noise=round(rate.error, 4)),
        measure("combined_win_rate_upper", round(rate.upper, 4), "share"),
        measure("combined_win_rate_lower", round(rate.lower, 4), "share"),
    ]
