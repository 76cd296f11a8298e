import math

import numpy as np
import pytest

from tuneline.harness.quantiles import percentile, quantile, samples_needed


def test_percentile_agrees_with_numpy():
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    for q in (0, 5, 50, 95, 100):
        assert percentile(values, q) == pytest.approx(np.percentile(values, q))
    assert math.isnan(percentile([], 50))


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
