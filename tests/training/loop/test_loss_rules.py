"""The rules tell trouble from noise."""

import math

import numpy as np
import pytest

from tuneline.config.training import LossRulesConfig
from tuneline.training.loop.loss_rules import (
    Curve,
    Watch,
    change_since_best,
    climb,
    not_finite,
    passes_without_gain,
    rise_of_validation,
    spikes,
)

LIMITS = LossRulesConfig()


def history(train, validation=()):
    """Entries as training logs them: a pass comes after the step it is named by."""
    entries = [
        {"step": i + 1, "loss": float(x), "task_loss": float(x)} for i, x in enumerate(train)
    ]
    passes = [{"step": int(s), "eval_loss": float(x)} for s, x in validation]
    return sorted([*entries, *passes], key=lambda e: (e["step"], "eval_loss" in e))


def curve(train, validation=()):
    return Curve.of(history(train, validation))


def falling(count=40, noise=0.2, seed=0):
    rng = np.random.default_rng(seed)
    return [0.1 + 3 * math.exp(-i / 6) * (1 + noise * rng.standard_normal()) for i in range(count)]


def rule_of(train, validation=(), limits=LIMITS):
    trip = Watch(limits).follow(history(train, validation))
    return trip.rule if trip else None


@pytest.mark.parametrize("seed", range(20))
def test_a_clean_noisy_curve_trips_nothing(seed):
    rng = np.random.default_rng(seed + 500)
    passes = [(s, 0.1 + 3 * math.exp(-s / 8) + rng.normal(0, 0.003)) for s in range(0, 41, 8)]
    train = falling(seed=seed)
    assert rule_of(train, passes) is None
    assert spikes(curve(train), LIMITS.spike_factor).found == []


@pytest.mark.parametrize("seed", range(20))
def test_a_long_clean_curve_of_small_steps_trips_nothing(seed):
    """Batches that scatter by a fifth, and passes that still creep down."""
    rng = np.random.default_rng(seed)
    train = [(0.05 + 2 / (1 + i / 20)) * rng.lognormal(0, 0.2) for i in range(400)]
    passes = [(s, 0.06 + 2 / (1 + s / 20)) for s in range(0, 401, 40)]
    assert rule_of(train, passes) is None


def test_small_losses_may_jump_by_factors():
    good = [0.01, 0.01, 0.01, 0.01, 0.3, 0.02, 0.2, 0.01]
    assert spikes(curve(good), 3.0).found == []
    assert rule_of(good) is None


def test_a_loss_that_is_no_number_trips():
    bad = [3, 2, math.nan, 2]
    assert not_finite(curve(bad)) == [3]
    trip = Watch(LIMITS).follow(history(bad))
    assert (trip.rule, trip.step) == ("nan", 3)
    assert rule_of([3, 2], [(2, math.inf)]) == "nan"


def test_a_step_that_rehearses_is_no_spike_and_breaks_no_streak():
    task = [0.4] * 12 + [2.0, 2.0, 2.0]
    log = []
    for step, loss in enumerate(task, 1):
        # The second step of each pair holds rehearsal rows alone.
        log.append({"step": 2 * step, "loss": loss / 3, "task_loss": loss})
        log.append({"step": 2 * step + 1, "loss": 0.05})
    read = Curve.of(log)
    assert len(read.optimised) == 2 * len(read.train) == 30
    assert Watch(LIMITS).follow(log[:24]) is None
    found = spikes(read, 3.0)
    assert [step for step, _, _ in found.found] == [26, 28, 30]
    assert found.longest == 3
    calm = [{"step": s, "loss": x, "task_loss": 0.4} for s, x in enumerate([2.0, 0.1] * 9)]
    assert Watch(LIMITS).follow(calm) is None


def test_a_lone_spike_is_counted_and_three_in_a_row_stop():
    lone = falling()
    lone[20] = 5.0
    assert [step for step, _, _ in spikes(curve(lone), 3.0).found] == [21]
    assert rule_of(lone) is None
    # Three of them, before the running median has climbed.
    three = [0.4] * 12 + [2.0, 2.0, 2.0]
    assert rule_of(three[:-1]) is None
    assert rule_of(three) in ("spike", "divergence")
    assert spikes(curve(three), 3.0).longest == 3
    # Where a climb is allowed, the streak alone stops; fewer spikes where fewer are asked for.
    lenient = LossRulesConfig(spike_streak=2)
    trip = Watch(lenient).follow(history(three))
    assert (trip.rule, trip.step) == ("spike", 14)


def test_divergence_trips_while_it_climbs():
    climbing = [3.0, 2.5, 2.0, 1.8, 1.7, 1.9, 2.4, 2.9, 3.5, 4.0, 5.0, 5.5, 6.0]
    trip = Watch(LIMITS).follow(history(climbing))
    assert trip.rule == "divergence"
    assert trip.value > trip.limit
    assert trip.step < len(climbing)
    assert "climbed" in trip.sentence
    # From the very first step on, without any progress before.
    assert rule_of([3.0, 3.2, 4.0, 5.0, 6.0, 7.0, 8.0]) == "divergence"
    # Measured from what the validation pass said before, not from a batch that was easy.
    assert rule_of([1.2, *[2.1] * 9], [(0, 2.1)]) is None
    assert rule_of([1.2, *[2.1] * 9]) == "divergence"
    # A limit that is set to bear it bears it.
    assert rule_of([3.0, 2.0, 1.0, 1.0, 1.0, *[2.4] * 8]) == "divergence"
    assert (
        rule_of([3.0, 2.0, 1.0, 1.0, 1.0, *[2.4] * 8], (), LossRulesConfig(divergence_share=1.0))
        is None
    )


def test_a_divergence_that_recovered_is_still_seen():
    up_and_down = [3.0, 2.0, 1.0, 1.0, 1.0, *[6.0] * 6, *[1.0] * 8]
    climbed, limit = climb(curve(up_and_down), LIMITS.divergence_share)
    assert climbed == 5.0
    assert climbed > limit


# Validation turns after step 20; what training does meanwhile says what that is.
TURNING = [(0, 3.0), (10, 1.0), (20, 0.9), (30, 1.2)]
STEADY = [1.0 + 0.02 * (i % 2) for i in range(20)]


@pytest.mark.parametrize(
    ("train", "validation", "rule"),
    [
        # Validation up while training falls, or stays: overfitting.
        (falling(30), TURNING, "overfit"),
        ([*STEADY, *STEADY[:10]], TURNING, "overfit"),
        # Validation up and training up: it gets worse at everything.
        ([*STEADY, *(1.3 + 0.02 * (i % 2) for i in range(10))], TURNING, "divergence"),
        # Training up while validation still falls: neither.
        ([*STEADY, *(1.3 + 0.02 * (i % 2) for i in range(10))], [*TURNING[:3], (30, 0.8)], None),
        # Validation within a hundredth of a nat of its best: no answer changes.
        (falling(20), [(0, 3.0), (10, 0.010), (20, 0.015)], None),
    ],
)
def test_overfitting_is_told_by_both_losses(train, validation, rule):
    trip = Watch(LIMITS).follow(history(train, validation))
    assert (trip.rule if trip else None) == rule
    if rule:
        assert trip.step == 30
        assert trip.value == pytest.approx(1.2 / 0.9)


def test_the_turn_of_the_validation_loss_is_measured():
    turned = curve(falling(30), TURNING)
    assert turned.best == (20, 0.9)
    assert rise_of_validation(turned) == pytest.approx(1.2 / 0.9)
    change, error = change_since_best(turned)
    assert change < -2 * error < 0
    assert rise_of_validation(curve([], [(0, 3.0), (10, 0.010), (20, 0.015)])) == 1.0


@pytest.mark.parametrize(
    ("passes", "rule"),
    [
        ([3.0, 1.0, 0.9, 0.9, 0.8995, 0.9], "plateau"),
        # One pass less, and one that gains in between.
        ([3.0, 1.0, 0.9, 0.9, 0.8995], None),
        ([3.0, 1.0, 0.9, 0.9, 0.85, 0.9], None),
        # What never gained anything at all.
        ([3.0, 3.0, 3.0, 3.0], "plateau"),
        # Creeping by less than the least gain a pass is a gain once it adds up.
        ([3.0, 1.0, 0.9, 0.8994, 0.8988, 0.8982, 0.8976], None),
    ],
)
def test_a_plateau_trips_after_passes_without_a_gain(passes, rule):
    validation = [(10 * i, x) for i, x in enumerate(passes)]
    flat = [1.0 + 0.02 * (i % 2) for i in range(10 * len(passes) - 10)]
    trip = Watch(LIMITS).follow(history(flat, validation))
    assert (trip.rule if trip else None) == rule
    if rule:
        assert (trip.value, trip.limit) == (3, 3)
        assert trip.step == validation[-1][0]


def test_a_slow_turn_while_training_falls_is_overfitting_and_no_plateau():
    passes = [(0, 3.0), (10, 0.9), (20, 0.93), (30, 0.96), (40, 0.99)]
    train = [1.5 - 0.03 * i + 0.01 * (i % 3) for i in range(40)]
    trip = Watch(LIMITS).follow(history(train, passes))
    assert (trip.rule, trip.value, trip.limit) == ("overfit", 3, 3)
    assert "rose by 0.09 nats while the training loss fell" in trip.sentence


def test_patience_can_be_set_and_switched_off():
    passes = [(10 * i, x) for i, x in enumerate([3.0, 0.9, *[0.9] * 6])]
    flat = [1.0] * 70
    assert passes_without_gain(curve(flat, passes), 0.001) == 6
    assert Watch(LossRulesConfig(plateau_evaluations=5)).follow(history(flat, passes)).step == 60
    assert rule_of(flat, passes, LossRulesConfig(plateau_evaluations=None)) is None


def test_a_log_that_grows_is_followed_as_one_that_is_whole():
    log = history([*falling(20), *[3.0] * 12], [(0, 3.1), (20, 0.5)])
    watch = Watch(LIMITS)
    trips = [watch.follow(log[: n + 1]) for n in range(len(log))]
    first = next(trip for trip in trips if trip is not None)
    assert first == Watch(LIMITS).follow(log)
    # A resumed training hands over what came before it at once.
    resumed = Watch(LIMITS)
    assert resumed.follow(log[:15]) is None
    assert resumed.follow(log) == first


def test_a_step_costs_the_same_however_long_the_run_is():
    """Every entry of the log is read once, not at every step again."""
    read = []

    class Entry(dict):
        def __contains__(self, name):
            read.append(name)
            return super().__contains__(name)

    log = [Entry(entry) for entry in history([1.0 + 0.01 * (i % 7) for i in range(300)])]
    watch = Watch(LIMITS)
    for n in range(len(log)):
        assert watch.follow(log[: n + 1]) is None
    assert len(read) <= 4 * len(log)


def test_history_is_read_back_with_its_infinities():
    log = [
        {"step": 0, "eval_loss": 2.0},
        {"step": 1, "loss": "nan", "task_loss": "nan"},
        {"step": 2, "loss": 1.5},
        {"step": 2, "eval_loss": "inf"},
    ]
    read = Curve.of(log)
    assert math.isnan(read.train[0][1])
    assert read.optimised[1:] == ((2, 1.5),)
    assert len(read.train) == 1
    assert read.validation[-1] == (2, math.inf)
    assert read.best == (0, 2.0)
