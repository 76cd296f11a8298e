"""Intervals and tests against scipy, tables and definitions, and how often they hold the truth."""

import math
import random

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar

from tuneline.statistics import (
    RowLosses,
    non_inferiority,
    paired,
    quantile,
    samples_needed,
    score_interval,
    share,
    sign_test,
    wilson,
)


def test_wilson_agrees_with_scipy():
    for successes, n in [(0, 10), (7, 10), (92, 100), (100, 100)]:
        ours = wilson(successes, n)
        theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
        assert ours.lower == pytest.approx(theirs.low, abs=1e-4)
        assert ours.upper == pytest.approx(theirs.high, abs=1e-4)
        assert ours.error > 0


def test_paired_difference_and_its_interval():
    base = [False] * 40 + [True] * 10
    tuned = [True] * 38 + [False] * 2 + [True] * 9 + [False]
    result = paired(base, tuned)
    assert result.difference.value == pytest.approx((38 - 1) / 50)
    assert (result.only_first, result.only_second) == (1, 38)
    assert result.difference.lower > 0.5
    # By hand: (38.5 - 1.5)/52 and its error.
    error = math.sqrt(40 - 37**2 / 52) / 52
    assert result.difference.error == pytest.approx(error, abs=1e-6)


def test_no_difference_has_an_interval_around_zero_and_not_of_width_zero():
    same = [True, False] * 20
    result = paired(same, same)
    assert result.difference.value == 0
    assert result.difference.lower < 0 < result.difference.upper
    assert result.p_value == 1


def test_paired_interval_covers_the_truth():
    """At a true gain of 0.2 on 60 rows the 95 % interval must hold it about that often."""
    drawn = np.random.default_rng(7)
    covered = 0
    for _ in range(500):
        cell = drawn.choice(4, size=60, p=[0.3, 0.1, 0.3, 0.3])
        base, tuned = np.isin(cell, (0, 1)), np.isin(cell, (0, 2))
        interval = paired(base.tolist(), tuned.tolist()).difference
        covered += interval.lower <= 0.2 <= interval.upper
    assert 0.92 <= covered / 500 <= 0.985


def test_sign_test_agrees_with_scipy():
    for wins, losses in [(8, 0), (6, 2), (3, 3), (40, 20)]:
        expected = stats.binomtest(wins, wins + losses).pvalue
        assert sign_test(wins, losses) == pytest.approx(expected)
    assert sign_test(0, 0) == 1


@pytest.mark.parametrize(("share", "needed"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368)])
def test_a_quantile_is_claimed_from_the_sample_on_that_bears_it(share, needed):
    """Below, all values may lie on one side of it with more than 2.5 %."""
    assert samples_needed(share) == needed
    assert max(share, 1 - share) ** needed <= 0.025 < max(share, 1 - share) ** (needed - 1)
    assert quantile([1.0] * (needed - 1), share) is None
    assert quantile([1.0] * needed, share) is not None


def test_an_interval_is_that_of_the_tables():
    """For the median of 10 values: the 2nd and the 9th (Conover, table A3, n = 10)."""
    found = quantile([float(n) for n in range(1, 11)], 0.5)
    assert (found.value, found.lower, found.upper) == (5.5, 2.0, 9.0)


@pytest.mark.parametrize(("share", "size"), [(0.5, 8), (0.5, 41), (0.95, 80), (0.95, 200)])
def test_intervals_cover_the_true_quantile_of_a_skewed_distribution(share, size):
    """Drawn from a log-normal, whose quantiles are known; 2000 samples each."""
    truth = float(np.exp({0.5: 0.0, 0.95: 1.6448536}[share]))
    rng = np.random.default_rng(7)
    covered = 0
    for sample in rng.lognormal(size=(2000, size)):
        found = quantile(list(sample), share)
        covered += found.lower <= truth <= found.upper
    assert covered / 2000 >= 0.95 - 0.012


Z = 1.959964


def statistic(gained, lost, rows, difference):
    """The score statistic, with the nuisance share found by maximising the likelihood."""

    def deviance(share):
        cells = ((gained, share + difference), (lost, share))
        rest = 1 - 2 * share - difference
        terms = [*cells, (rows - gained - lost, rest)]
        return -sum(count * math.log(max(p, 1e-300)) for count, p in terms if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    share = minimize_scalar(
        deviance, bounds=(low, high), options={"xatol": 1e-12}, method="bounded"
    ).x
    variance = (2 * share + difference - difference**2) / rows
    return ((gained - lost) / rows - difference) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("gained", "lost", "rows"), [(3, 9, 60), (9, 3, 60), (1, 0, 48), (0, 7, 100), (20, 25, 400)]
)
def test_both_ends_are_where_the_score_test_turns(gained, lost, rows):
    interval = score_interval(gained, lost, rows)
    assert statistic(gained, lost, rows, interval.lower) == pytest.approx(Z, abs=1e-3)
    assert statistic(gained, lost, rows, interval.upper) == pytest.approx(-Z, abs=1e-3)
    assert interval.lower < (gained - lost) / rows < interval.upper
    mirrored = score_interval(lost, gained, rows)
    assert (mirrored.lower, mirrored.upper) == pytest.approx((-interval.upper, -interval.lower))


def test_models_that_never_disagree_have_the_known_interval():
    interval = score_interval(0, 0, 48)
    half = Z**2 / (48 + Z**2)
    assert (interval.lower, interval.upper) == pytest.approx((-half, half), abs=1e-9)


def test_the_interval_covers_the_true_difference_in_about_95_of_100_samples():
    draw = random.Random(4)
    gain, loss, rows, covered = 0.03, 0.08, 150, 0
    for _ in range(1000):
        seen = [draw.random() for _ in range(rows)]
        gained = sum(x < gain for x in seen)
        lost = sum(gain <= x < gain + loss for x in seen)
        interval = score_interval(gained, lost, rows)
        covered += interval.lower <= gain - loss <= interval.upper
    assert 0.93 <= covered / 1000 <= 0.975


def flags(both, gained, lost, neither):
    pairs = [(True, True)] * both + [(False, True)] * gained + [(True, False)] * lost
    pairs += [(False, False)] * neither
    old, new = zip(*pairs, strict=True)
    return list(old), list(new)


@pytest.mark.parametrize(
    ("cells", "decision"),
    [
        ((400, 0, 0, 20), "not worse"),
        ((380, 30, 5, 10), "not worse"),
        ((40, 0, 0, 8), "undecided"),
        ((40, 2, 4, 2), "undecided"),
        ((20, 1, 20, 7), "worse"),
        ((300, 5, 60, 35), "worse"),
    ],
)
def test_the_decision_follows_from_the_interval(cells, decision):
    assert non_inferiority(*flags(*cells), 0.02).decision == decision


def test_an_equal_model_is_let_through_about_as_often_as_planned():
    draw = random.Random(6)
    planned = non_inferiority(*flags(90, 3, 3, 4), 0.02).rows_needed
    passed = 0
    for _ in range(300):
        seen = [draw.random() for _ in range(planned)]
        gained, lost = sum(x < 0.03 for x in seen), sum(0.03 <= x < 0.06 for x in seen)
        passed += score_interval(gained, lost, planned).lower >= -0.02
    assert 0.7 <= passed / 300 <= 0.9


def test_a_model_worse_by_the_margin_hardly_ever_passes():
    draw = random.Random(8)
    rows, passed = 600, 0
    for _ in range(500):
        seen = [draw.random() for _ in range(rows)]
        gained, lost = sum(x < 0.02 for x in seen), sum(0.02 <= x < 0.06 for x in seen)
        passed += score_interval(gained, lost, rows).lower >= -0.02
    assert passed / 500 <= 0.045


@pytest.mark.parametrize(
    ("compute", "why"),
    [
        (lambda: share([]), "at least one"),
        (lambda: score_interval(0, 0, 0), "rows differ"),
        (lambda: score_interval(3, 3, 5), "rows differ"),
    ],
)
def test_impossible_counts_are_refused(compute, why):
    with pytest.raises(ValueError, match=why):
        compute()


def test_the_standard_error_is_that_of_repeated_draws():
    rng = np.random.default_rng(0)
    targets = rng.integers(5, 40, 4000)
    sums = targets * rng.gamma(2.0, 0.3, 4000)
    means, errors = [], []
    for draw in range(400):
        pick = np.random.default_rng(draw).choice(4000, 50)
        found = RowLosses(tuple(sums[pick]), tuple(int(n) for n in targets[pick]), (1.0,) * 50)
        means.append(found.mean)
        errors.append(found.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)


def test_the_weights_of_rows_count():
    losses = RowLosses((10.0, 40.0), (10, 10), (1.0, 3.0))
    assert losses.mean == pytest.approx((10 + 3 * 40) / 40)
    assert losses.perplexity == pytest.approx(math.exp(3.25))
    assert losses.log_ratio_error(losses) == 0.0


def test_the_ratio_has_an_interval_paired_by_row():
    first, second = (
        RowLosses((11.0, 42.0), (10, 10), (1.0, 1.0)),
        RowLosses((10.0, 40.0), (10, 10), (1.0, 1.0)),
    )
    ratio = first.ratio_to(second)
    assert ratio.value == pytest.approx(math.exp(0.15))
    assert ratio.lower < ratio.value < ratio.upper
    assert ratio.error == pytest.approx(ratio.value * first.log_ratio_error(second))
    same = first.ratio_to(first)
    assert (same.value, same.lower, same.upper) == (1.0, 1.0, 1.0)
