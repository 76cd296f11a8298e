"""The bets: fair without drift, a year within its budget, quick with drift at any time."""

import numpy as np
import pytest

from tuneline.governance.drift.bets import (
    BLOCKS,
    LEVELS,
    SINGLE,
    SLOW,
    YEAR,
    Wealth,
    calibrate,
    night_money,
    rate_log_e,
)
from tuneline.governance.drift.reference import SHARES


def test_money_and_budget_are_spent_once():
    assert sum(night_money(n) for n in range(YEAR)) == pytest.approx(1)
    assert SLOW + SINGLE + sum(BLOCKS.values()) == pytest.approx(1)
    assert sum(SHARES.values()) == pytest.approx(1)


def test_every_alternative_is_fair_under_its_bounds():
    """The mean of the odds over the largest null is at most 1: no bet wins by itself."""
    tail = calibrate(np.random.default_rng(1).normal(size=3000), np.empty(0), 0.001)
    mass = np.diff([0, *tail.bounds, 1])
    fair = np.exp(tail.odds) @ mass
    assert fair.max() <= 1 + 1e-6
    assert fair.min() > 0.95
    assert len(tail.thresholds) == len(LEVELS)


def test_a_rate_at_its_bound_is_a_fair_bet():
    from scipy.stats import binom

    counts = np.arange(51)
    e = np.array([np.exp(rate_log_e(int(k), 50, 0.1, [0.2, 0.4])) for k in counts])
    assert binom.pmf(counts, 50, 0.1) @ e == pytest.approx([1, 1])


def watch(nights, shift_from=None, seed=0, size=200):
    """Scores of a normal distribution, of another maker than the tails; a tenth shifts by 3."""
    rng = np.random.default_rng(seed)
    tail = calibrate(rng.normal(size=4000), rng.normal(size=400), 0.001)
    wealth = Wealth()
    for night in range(nights):
        scores = rng.normal(size=size)
        if shift_from is not None and night >= shift_from:
            scores[: size // 10] += 3
        wealth.bet(tail.log_e(scores), tail.tally(scores), tail.test, f"day-{night:03d}")
    return wealth


def test_years_without_drift_are_quiet():
    assert sum(watch(YEAR, seed=seed).p_value < 0.05 for seed in range(10)) <= 1


def test_many_watches_at_once_are_those_of_each():
    rng = np.random.default_rng(1)
    tail = calibrate(rng.normal(size=2000), np.empty(0), 0.001)
    together, alone = Wealth(), [Wealth() for _ in range(3)]
    for night in range(30):
        scores = rng.normal(0.1 if night > 20 else 0, 1, size=(3, 100))
        together.bet(tail.log_e(scores), tail.tally(scores), tail.test, str(night))
        for purse, row in zip(alone, scores, strict=True):
            purse.bet(tail.log_e(row), tail.tally(row), tail.test, str(night))
    assert together.p_value == pytest.approx([purse.p_value for purse in alone])


def test_a_drift_late_in_the_year_is_dated():
    wealth = watch(204, shift_from=200)
    assert wealth.p_value < 0.01
    assert wealth.since == "day-200"


def test_a_new_year_has_a_new_budget():
    wealth = watch(YEAR, shift_from=YEAR - 3)
    assert wealth.p_value < 0.01
    nothing = np.zeros_like(wealth.rise), wealth.recent[-1], lambda _: np.ones(())
    wealth.bet(*nothing, "day-365")
    assert wealth.nights == 1
    assert wealth.p_value > 0.1


def test_a_split_that_moves_prompts_away_is_no_drift():
    """The reference is closer to itself than fresh prompts are; validation shows by how much."""
    rng = np.random.default_rng(3)
    scores, checked = rng.normal(size=4000), rng.normal(0.5, size=1000)
    fresh = rng.normal(0.5, size=500)
    blind, seeing = calibrate(scores, np.empty(0), 0.001), calibrate(scores, checked, 0.001)
    assert blind.test(blind.tally(fresh)) < 1e-4
    assert seeing.test(seeing.tally(fresh)) > 0.05
