"""Decide from paired answers whether general ability was lost.

The loss has an interval of 95 %, whose error the looks at the questions share (Bonferroni), so
that it holds over all of them together. A model fails if the lower end is beyond the allowed loss,
or the estimate is, beyond chance; it passes if the upper end excludes a loss that must be seen,
with a warning if a smaller one is shown; else nothing is decided. Before the last look it passes if
also no category looks worse, and fails if its loss is beyond any doubt: with a chance so small
(`EARLY_LEVEL`) that looking several times adds next to no false alarm, as the bounds of O'Brien and
Fleming (1979) do. Chance is that of the exact sign test (McNemar, 1947). The levels are one-sided;
together they fail a model that lost nothing in less than 0.5 % of the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from statistics import NormalDist
from typing import NamedTuple

from tuneline.asking.general_questions import Question
from tuneline.evidence import Breach, Finding, Measurement, measure
from tuneline.statistics import TAIL, Bounds, Paired, RowLosses, paired, score_interval, z_of

# Chance of a false alarm over all questions, and in all categories together.
LEVEL, CATEGORY_LEVEL = 0.0035, 0.001
# The same for each look before the last, over all questions and in all categories together.
EARLY_LEVEL = 1e-5
# Error on each side of the interval that the looks before the last share; the last has the rest.
EARLY_TAIL = 0.01
# A category looks worse, and is asked more questions, at this level.
SUSPICION = 0.02
# A category of fewer questions is not judged: it would have to lose half of them to be named.
LEAST_QUESTIONS = 30
# Chance with which a loss counts as one that would be seen.
POWER = 0.8
DEFAULT_LIMIT = 0.03
# Each look has so many times the questions of the one before, in total.
GROWTH = 2.5
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Limits:
    """The limits, as shares of the questions; a loss of `to_see` must be excluded."""

    drop: float
    category: float
    to_see: float


class Look(NamedTuple):
    """The questions asked by then, and the error on each side of the interval of the loss."""

    questions: int
    tail: float


@dataclass(frozen=True)
class CategoryRow:
    """The shares right of both models in one category, and the questions lost and gained.

    `p_value` is one-sided: the chance of as many losses, or more, without any real one.
    `smallest_drop_named` is the smallest drop beyond chance with as many gains; None if no number
    of its questions shows one.
    """

    category: str
    questions: int
    base: float
    tuned: float
    lost: int
    gained: int
    p_value: float
    smallest_drop_named: float | None = None

    @property
    def judged(self) -> bool:
        """True if there are enough questions for a verdict."""
        return self.questions >= LEAST_QUESTIONS

    @property
    def change(self) -> float:
        """The share of the tuned model minus that of the base."""
        return self.tuned - self.base


def chance_of_losses(lost: int, gained: int) -> float:
    """Return the chance of so many losses or more if a change is as likely for the better."""
    from scipy.stats import binom

    return float(binom.sf(lost - 1, lost + gained, 0.5))


def plan_looks(questions: int, first: int) -> list[Look]:
    """Return the looks; the last one takes all questions."""
    sizes, size = [], float(first)
    while size * GROWTH**0.5 < questions:
        sizes.append(int(size))
        size *= GROWTH
    early = [Look(asked, EARLY_TAIL / len(sizes)) for asked in sizes]
    return [*early, Look(questions, TAIL - EARLY_TAIL if early else TAIL)]


def loss_of(result: Paired, look: Look) -> Bounds:
    """Return the loss on the questions so far with its score interval; a gain is negative."""
    gain = score_interval(result.only_second, result.only_first, *look)
    return Bounds(0.0 - gain.value, 0.0 - gain.upper, 0.0 - gain.lower)


def by_category(
    questions: Sequence[Question], base: Sequence[bool], tuned: Sequence[bool]
) -> list[CategoryRow]:
    """Return the answers of both models in each category, in the order of their names."""
    table = []
    categories = sorted({question.category for question in questions})
    for category in categories:
        at = [number for number, q in enumerate(questions) if q.category == category]
        of_base, of_tuned = [base[n] for n in at], [tuned[n] for n in at]
        pair = paired(of_base, of_tuned)
        lost, gained = pair.only_first, pair.only_second
        shares = sum(of_base) / len(at), sum(of_tuned) / len(at)
        chance = chance_of_losses(lost, gained)
        least = smallest_drop_named(gained, len(at), CATEGORY_LEVEL / len(categories))
        table.append(CategoryRow(category, len(at), *shares, lost, gained, chance, least))
    return table


def smallest_drop_named(gained: int, questions: int, level: float) -> float | None:
    """Return the smallest drop beyond chance; None if there are too few questions for one."""
    lost = next(n for n in count(gained) if chance_of_losses(n, gained) <= level)
    return round((lost - gained) / questions, 4) if lost + gained <= questions else None


def weakest(table: Sequence[CategoryRow]) -> CategoryRow:
    """Return the category that lost most, among those that are judged if there is one."""
    return min([row for row in table if row.judged] or table, key=lambda row: row.change)


def passes_early(result: Paired, table: Sequence[CategoryRow], look: Look, limits: Limits) -> bool:
    """Return True if the questions so far leave no loss possible that would have to be seen."""
    loss = loss_of(result, look)
    suspicious = any(-row.change > limits.category and row.p_value < SUSPICION for row in table)
    return loss.upper <= limits.to_see and loss.value <= limits.drop and not suspicious


def fails_early(result: Paired, table: Sequence[CategoryRow], limits: Limits) -> bool:
    """Return True if the questions so far leave no doubt that a limit is broken."""
    chance = chance_of_losses(result.only_first, result.only_second)
    lost = -result.difference.value > limits.drop and chance <= EARLY_LEVEL
    return lost or bool(lost_categories(table, limits.category, EARLY_LEVEL))


def lost_categories(
    table: Sequence[CategoryRow], limit: float, level: float = CATEGORY_LEVEL
) -> list[str]:
    """Return the categories that lost more than the limit, beyond chance.

    The level is shared among them (Bonferroni), since the worst of many is looked for.
    """
    own = level / len(table)
    return [row.category for row in table if -row.change > limit and row.p_value <= own]


def detectable_drop(result: Paired, asked: int, planned: int, limit: float) -> float:
    """Return the smallest real loss that is seen with a probability of `POWER`."""
    error = result.difference.error * math.sqrt(asked / planned)
    needed = max(limit, -_NORMAL.inv_cdf(LEVEL) * error)
    return needed + _NORMAL.inv_cdf(POWER) * error


def questions_needed(result: Paired, asked: int, limits: Limits) -> int | None:
    """Return how many questions exclude the loss that must be seen, if the loss stays as it is."""
    room, variance = limits.to_see + result.difference.value, result.difference.error**2 * asked
    return math.ceil(variance * (z_of() / room) ** 2) if room > 0 else None


def judge(
    result: Paired, table: Sequence[CategoryRow], look: Look, planned: int, limits: Limits
) -> list[Measurement]:
    """Measure the losses after the last look at `planned` questions, and compare with the limits.

    A loss that is shown but allowed warns; one that must be seen and is not excluded is
    inconclusive.
    """
    loss = loss_of(result, look)
    chance = chance_of_losses(result.only_first, result.only_second)
    breach: Breach = "fail" if chance <= LEVEL or loss.lower > limits.drop else "warn"
    lost = lost_categories(table, limits.category)
    worst = weakest(table)
    seen = round(detectable_drop(result, look.questions, planned, limits.drop), 4)
    few = ", ".join(row.category for row in table if not row.judged)
    drop, lower, upper = (round(value, 4) for value in loss)
    noise = round(result.difference.error, 4)
    return [
        measure("drop", drop, "share", "<=", limits.drop, noise=noise, on_breach=breach),
        measure("drop_lower", lower, "share", "<=", 0.0, on_breach="warn"),
        measure("drop_upper", upper, "share", "<=", limits.to_see, on_breach="inconclusive"),
        measure("chance_of_this_drop", round(chance, 6), "p"),
        measure("categories_lost", len(lost), "categories", "<=", 0),
        measure("categories_not_judged", few, ""),
        measure("worst_category", worst.category, ""),
        measure("worst_category_drop", round(0.0 - worst.change, 4), "share"),
        measure("detectable_drop", seen, "share"),
        measure("only_base_right", result.only_first, "questions"),
        measure("only_tuned_right", result.only_second, "questions"),
        measure("mcnemar_p", round(result.p_value, 6), "p"),
    ]


# Training on one task makes prose of other kinds a little less likely; answers get worse only
# with more than that.
DEFAULT_RATIO = 1.5


def compare_texts(losses: tuple[RowLosses, RowLosses] | None, limit: float | None) -> Finding:
    """Compare the perplexity of the tuned model with that of the base, paired by text.

    The 95 % interval of their ratio decides: it fails beyond the limit, passes within it, and is
    inconclusive about it, as it is without losses. A `limit` of None takes `DEFAULT_RATIO`.
    """
    allowed = limit or DEFAULT_RATIO
    if losses is None:
        why = "not measured: the engine does not report the probabilities of given tokens"
        name = "perplexity_ratio_lower"
        unknown = measure(name, None, "ratio", "<=", allowed, on_breach="inconclusive")
        return Finding([unknown], f"perplexity on general texts {why}")
    base, tuned = losses
    ratio = tuned.ratio_to(base)
    # A model that holds texts impossible has an error that JSON has no number for.
    noise = round(ratio.error, 4) if math.isfinite(ratio.error) else None
    name, end = "perplexity_ratio_upper", round(ratio.upper, 4)
    upper = measure(name, end, "ratio", "<=", allowed, on_breach="inconclusive")
    return Finding(
        [
            measure("texts", len(base.sums), "texts"),
            measure("base_perplexity", round(base.perplexity, 4), "perplexity"),
            measure("tuned_perplexity", round(tuned.perplexity, 4), "perplexity"),
            measure("perplexity_ratio", round(ratio.value, 4), "ratio", noise=noise),
            measure("perplexity_ratio_lower", round(ratio.lower, 4), "ratio", "<=", allowed),
            upper,
        ],
        f"the perplexity on {len(base.sums)} general texts is {ratio.value:.3f} times that of the "
        f"base [{ratio.lower:.3f}, {ratio.upper:.3f}] (limit {allowed:g})",
    )
