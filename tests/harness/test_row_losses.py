"""The mean of row losses, its error, and the ratio of two models are right."""

import math

import numpy as np
import pytest

from tuneline.harness.row_losses import RowLosses


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
