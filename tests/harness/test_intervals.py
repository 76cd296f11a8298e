import math

import pytest
from scipy import stats

from tuneline.harness.intervals import paired, share, sign_test, wilson


def test_wilson_agrees_with_scipy():
    for successes, n in [(0, 10), (7, 10), (92, 100), (100, 100)]:
        ours = wilson(successes, n)
        theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
        assert ours.lower == pytest.approx(theirs.low, abs=1e-4)
        assert ours.upper == pytest.approx(theirs.high, abs=1e-4)
        assert ours.error > 0


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        share([])


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
    import numpy as np

    random = np.random.default_rng(7)
    covered = 0
    for _ in range(500):
        cell = random.choice(4, size=60, p=[0.3, 0.1, 0.3, 0.3])
        base, tuned = np.isin(cell, (0, 1)), np.isin(cell, (0, 2))
        interval = paired(base.tolist(), tuned.tolist()).difference
        covered += interval.lower <= 0.2 <= interval.upper
    assert 0.92 <= covered / 500 <= 0.985


def test_sign_test_agrees_with_scipy():
    for wins, losses in [(8, 0), (6, 2), (3, 3), (40, 20)]:
        expected = stats.binomtest(wins, wins + losses).pvalue
        assert sign_test(wins, losses) == pytest.approx(expected)
    assert sign_test(0, 0) == 1
