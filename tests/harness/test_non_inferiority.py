"""Tango's interval against a numerical maximum of the likelihood, its coverage, the decision."""

import itertools
import math
import random

import pytest
from scipy.optimize import minimize_scalar

from tuneline.harness.non_inferiority import non_inferiority, score_interval

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


def test_the_rows_needed_decide():
    few = non_inferiority(*flags(90, 3, 3, 4), 0.02)
    assert few.decision == "undecided"
    times = math.ceil(few.rows_needed / few.rows)
    assert times > 2
    many = non_inferiority(*flags(90 * times, 3 * times, 3 * times, 4 * times), 0.02)
    assert many.decision == "not worse"
    worse = non_inferiority(*flags(90, 1, 5, 4), 0.02)
    times = math.ceil(worse.rows_needed / worse.rows)
    assert worse.decision == "undecided"
    assert (
        non_inferiority(*flags(90 * times, times, 5 * times, 4 * times), 0.02).decision == "worse"
    )


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


@pytest.mark.parametrize("case", [(0, 0, 0), (3, 3, 5)])
def test_impossible_counts_are_refused(case):
    with pytest.raises(ValueError, match="rows differ"):
        score_interval(*case)


def test_the_lower_end_falls_with_every_loss():
    lowers = [score_interval(2, lost, 80).lower for lost in range(20)]
    assert all(a > b for a, b in itertools.pairwise(lowers))
