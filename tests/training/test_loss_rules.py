"""The rules tell trouble from noise."""

import math

import numpy as np
import pytest

from tuneline.training.loss_rules import (
    Curve,
    Thresholds,
    first_trip,
    longest_streak,
    not_finite,
    overfit,
    rise,
    spikes,
)

LIMITS = Thresholds(spike_factor=3.0, overfit_ratio=1.2)


def curve(train, validation=()):
    points = tuple((i + 1, float(x)) for i, x in enumerate(train))
    return Curve(
        points,
        points,
        tuple((int(s), float(x)) for s, x in validation),
    )


def falling(count=40, noise=0.2, seed=0):
    rng = np.random.default_rng(seed)
    return [0.1 + 3 * math.exp(-i / 6) * (1 + noise * rng.standard_normal()) for i in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_a_noisy_falling_curve_trips_nothing(seed):
    good = curve(falling(seed=seed), [(0, 3.1), (20, 0.5), (40, 0.2)])
    assert first_trip(good, LIMITS) is None
    assert spikes(good, 3.0) == []


def test_small_losses_may_jump_by_factors():
    good = curve([0.01, 0.01, 0.01, 0.01, 0.3, 0.02, 0.2, 0.01])
    assert spikes(good, 3.0) == []
    assert first_trip(good, LIMITS) is None


def test_a_loss_that_is_no_number_trips():
    bad = curve([3, 2, math.nan, 2])
    assert not_finite(bad) == [3]
    assert first_trip(bad, LIMITS).rule == "nan"
    assert first_trip(curve([3, 2], [(2, math.inf)]), LIMITS).rule == "nan"


def test_a_step_that_rehearses_is_no_spike_and_breaks_no_streak():
    task = [0.4] * 12 + [2.0, 2.0, 2.0]
    history = []
    for step, loss in enumerate(task, 1):
        # The second step of each pair holds rehearsal rows alone.
        history.append({"step": 2 * step, "loss": loss / 3, "task_loss": loss})
        history.append({"step": 2 * step + 1, "loss": 0.05})
    read = Curve.of(history)
    assert len(read.optimised) == 2 * len(read.train) == 30
    assert first_trip(Curve.of(history[:24]), LIMITS) is None
    found = spikes(read, 3.0)
    assert [step for step, _, _ in found] == [26, 28, 30]
    assert longest_streak(read, found) == 3
    calm = Curve.of(
        [{"step": s, "loss": x, "task_loss": 0.4} for s, x in enumerate([2.0, 0.1] * 9)]
    )
    assert first_trip(calm, LIMITS) is None


def test_a_lone_spike_is_counted_and_three_in_a_row_stop():
    lone = falling()
    lone[20] = 5.0
    assert [step for step, _, _ in spikes(curve(lone), 3.0)] == [21]
    assert first_trip(curve(lone), LIMITS) is None
    # Three of them, before the running median has climbed.
    three = [0.4] * 12 + [2.0, 2.0, 2.0]
    assert first_trip(curve(three[:-1]), LIMITS) is None
    trip = first_trip(curve(three), Thresholds(3.0, 1.2))
    assert trip.rule in ("spike", "divergence")
    assert longest_streak(curve(three), spikes(curve(three), 3.0)) == 3


def test_divergence_trips_while_it_climbs():
    climbing = [3.0, 2.5, 2.0, 1.8, 1.7, 1.9, 2.4, 2.9, 3.5, 4.0, 5.0]
    trip = first_trip(curve(climbing), LIMITS)
    assert trip.rule == "divergence"
    assert trip.value > trip.limit
    assert "climbed" in trip.sentence
    # From the very first step on, without any progress before.
    assert first_trip(curve([3.0, 3.2, 4.0, 5.0, 6.0, 7.0]), LIMITS).rule == "divergence"


def test_a_divergence_that_recovered_is_still_seen():
    history = [3.0, 2.0, 1.0, 1.0, 1.0, 6.0, 6.0, 6.0, 6.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    climbed, limit = rise(curve(history))
    assert climbed == 5.0
    assert climbed > limit


def test_overfitting_trips_on_the_validation_loss():
    validation = [(0, 3.0), (10, 1.0), (20, 0.9)]
    assert first_trip(curve(falling(20), validation), LIMITS) is None
    worse = curve(falling(30), [*validation, (30, 1.2)])
    assert overfit(worse) == pytest.approx(1.2 / 0.9)
    trip = first_trip(worse, LIMITS)
    assert (trip.rule, trip.step) == ("overfit", 30)
    assert worse.best == (20, 0.9)


def test_overfitting_within_a_hundredth_of_a_nat_is_none():
    assert overfit(curve(falling(20), [(0, 3.0), (10, 0.010), (20, 0.015)])) == 1.0


def test_history_is_read_back_with_its_infinities():
    history = [
        {"step": 0, "eval_loss": 2.0},
        {"step": 1, "loss": "nan", "task_loss": "nan"},
        {"step": 2, "loss": 1.5},
        {"step": 2, "eval_loss": "inf"},
    ]
    read = Curve.of(history)
    assert math.isnan(read.train[0][1])
    assert read.optimised[1:] == ((2, 1.5),)
    assert len(read.train) == 1
    assert read.validation[-1] == (2, math.inf)
    assert read.best == (0, 2.0)
