"""Decide from paired answers whether general ability was lost.

Questions are asked in looks. After each but the last, a model passes if the loss that must be seen
is excluded and no category looks worse, and is blocked if its loss is beyond any doubt: with a
chance so small (`EARLY_LEVEL`) that looking several times adds next to no false alarm, as the
bounds of O'Brien and Fleming (1979) do. Questions lost and gained decide by the exact sign test
(McNemar, 1947). The levels are one-sided; together they block a model that lost nothing in less
than 0.5 % of the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from tuneline.asking.general_questions import Question
from tuneline.evidence import Breach, Finding, Measurement, measure
from tuneline.statistics import Paired, RowLosses, paired

# Chance of a false alarm over all questions, and in all categories together.
LEVEL, CATEGORY_LEVEL = 0.0035, 0.001
# The same for each look before the last, over all questions and in all categories together.
EARLY_LEVEL = 1e-5
# Chance that a look passes a model with the loss that must be seen.
MISS = 0.01
# A category looks worse, and is asked more questions, at this level.
SUSPICION = 0.02
# Chance with which a loss counts as one that would be seen.
POWER = 0.8
DEFAULT_LIMIT = 0.03
# Each look has so many times the questions of the one before, in total.
GROWTH = 2.5
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Limits:
    """The limits, as shares of the questions; `to_see` must be seen with a chance of `POWER`."""

    drop: float
    category: float
    to_see: float


@dataclass(frozen=True)
class CategoryRow:
    """The shares right of both models in one category, and the questions lost and gained.

    `p_value` is one-sided: the chance of as many losses, or more, without any real one.
    """

    category: str
    questions: int
    base: float
    tuned: float
    lost: int
    gained: int
    p_value: float

    @property
    def change(self) -> float:
        """The share of the tuned model minus that of the base."""
        return self.tuned - self.base


def chance_of_losses(lost: int, gained: int) -> float:
    """Return the chance of so many losses or more if a change is as likely for the better."""
    from scipy.stats import binom

    return float(binom.sf(lost - 1, lost + gained, 0.5))


def plan_looks(questions: int, first: int) -> list[int]:
    """Return the number of questions after each look; the last one takes all."""
    sizes, size = [], float(first)
    while size * GROWTH**0.5 < questions:
        sizes.append(int(size))
        size *= GROWTH
    return [*sizes, questions]


def by_category(
    questions: Sequence[Question], base: Sequence[bool], tuned: Sequence[bool]
) -> list[CategoryRow]:
    """Return the answers of both models in each category, in the order of their names."""
    table = []
    for category in sorted({question.category for question in questions}):
        at = [number for number, q in enumerate(questions) if q.category == category]
        of_base, of_tuned = [base[n] for n in at], [tuned[n] for n in at]
        pair = paired(of_base, of_tuned)
        lost, gained = pair.only_first, pair.only_second
        shares = sum(of_base) / len(at), sum(of_tuned) / len(at)
        chance = chance_of_losses(lost, gained)
        table.append(CategoryRow(category, len(at), *shares, lost, gained, chance))
    return table


def passes_early(result: Paired, table: Sequence[CategoryRow], limits: Limits) -> bool:
    """Return True if the questions so far leave no loss possible that would have to be seen."""
    upper = _NORMAL.inv_cdf(1 - MISS) * result.difference.error - result.difference.value
    suspicious = any(-row.change > limits.category and row.p_value < SUSPICION for row in table)
    return upper < limits.to_see and -result.difference.value <= limits.drop and not suspicious


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


def questions_needed(result: Paired, asked: int, limits: Limits) -> int:
    """Return the number of questions with which the loss that must be seen would be."""
    variance = result.difference.error**2 * asked
    power = _NORMAL.inv_cdf(POWER)
    by_chance = (power - _NORMAL.inv_cdf(LEVEL)) / limits.to_see
    by_limit = power / max(limits.to_see - limits.drop, 1e-9)
    return math.ceil(variance * max(by_chance, by_limit) ** 2)


def judge(
    result: Paired, table: Sequence[CategoryRow], asked: int, planned: int, limits: Limits
) -> list[Measurement]:
    """Measure the losses and compare them with the limits, of `planned` questions.

    A drop beyond the limit that chance could explain is inconclusive, as is a number of questions
    that could not have shown the loss that must be seen.
    """
    chance = chance_of_losses(result.only_first, result.only_second)
    breach: Breach = "fail" if chance <= LEVEL else "inconclusive"
    lost = lost_categories(table, limits.category)
    worst = min(table, key=lambda row: row.change)
    seen = round(detectable_drop(result, asked, planned, limits.drop), 4)
    # 0.0 - x and not -x: no drop shall read as 0.0, not as -0.0.
    drop, noise = round(0.0 - result.difference.value, 4), round(result.difference.error, 4)
    return [
        measure("drop", drop, "share", "<=", limits.drop, noise=noise, on_breach=breach),
        measure("chance_of_this_drop", round(chance, 6), "p"),
        measure("categories_lost", len(lost), "categories", "<=", 0),
        measure("worst_category", worst.category, ""),
        measure("worst_category_drop", round(0.0 - worst.change, 4), "share"),
        measure("detectable_drop", seen, "share", "<=", limits.to_see, on_breach="inconclusive"),
        measure("only_base_right", result.only_first, "questions"),
        measure("only_tuned_right", result.only_second, "questions"),
        measure("mcnemar_p", round(result.p_value, 6), "p"),
    ]


# Training on one task makes prose of other kinds a little less likely; answers get worse only
# with more than that.
DEFAULT_RATIO = 1.5


def compare_texts(losses: tuple[RowLosses, RowLosses] | None, limit: float | None) -> Finding:
    """Compare the perplexity of the tuned model with that of the base, paired by text.

    The lower end of the 95 % interval of their ratio decides: only more than chance fails. Without
    losses nothing does; a `limit` of None takes `DEFAULT_RATIO`.
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
    return Finding(
        [
            measure("texts", len(base.sums), "texts"),
            measure("base_perplexity", round(base.perplexity, 4), "perplexity"),
            measure("tuned_perplexity", round(tuned.perplexity, 4), "perplexity"),
            measure("perplexity_ratio", round(ratio.value, 4), "ratio", noise=noise),
            measure("perplexity_ratio_lower", round(ratio.lower, 4), "ratio", "<=", allowed),
            measure("perplexity_ratio_upper", round(ratio.upper, 4), "ratio"),
        ],
        f"the perplexity on {len(base.sums)} general texts is {ratio.value:.3f} times that of the "
        f"base [{ratio.lower:.3f}, {ratio.upper:.3f}] (limit {allowed:g})",
    )
