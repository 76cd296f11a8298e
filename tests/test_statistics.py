"""Intervals and tests against scipy, tables and definitions, and how often they hold the truth."""

import math

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
    assert (interval.lower, interval.upper) == pytest.approx((-half, half), abs=1e-7)


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
        # Worse beyond chance, but not by more than the margin; and too few that differ.
        ((3800, 20, 60, 120), "not worse"),
        ((390, 0, 10, 0), "undecided"),
        ((25, 0, 5, 0), "undecided"),
    ],
)
def test_the_decision_follows_from_the_interval(cells, decision):
    assert non_inferiority(*flags(*cells), 0.02).decision == decision


@pytest.mark.parametrize(
    ("rows", "margin", "changed", "passed"),
    # As docs/evaluation.md recommends, for models that disagree on 4 % of the rows.
    [(240, 0.05, 0.04, 0.9), (60, 0.12, 0.04, 0.9)],
)
def test_an_equal_model_passes_and_one_worse_by_the_margin_does_not(rows, margin, changed, passed):
    """By the exact probabilities of the counts."""
    gained, lost = np.divmod(np.arange(40 * 40), 40)
    possible = gained + lost <= rows
    gained, lost = gained[possible], lost[possible]
    verdicts = [
        score_interval(int(g), int(n), rows).lower >= -margin
        for g, n in zip(gained, lost, strict=True)
    ]
    counts = np.stack([gained, lost, rows - gained - lost], axis=1)
    for p_gained, p_lost, least, most in (
        (changed / 2, changed / 2, passed, 1.0),
        (0.01, 0.01 + margin, 0.0, 0.027),
    ):
        chances = stats.multinomial(rows, [p_gained, p_lost, 1 - p_gained - p_lost]).pmf(counts)
        assert least <= chances[verdicts].sum() <= most


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
