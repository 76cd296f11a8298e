"""The rules tell trouble from noise, while training runs and when its curve is judged."""

import math

import numpy as np
import pytest
from tests.lab.runs import broken

from tuneline.artifacts.training import TrainedRun, Trip
from tuneline.config.training import LossRulesConfig
from tuneline.evidence import Verdict, conclude
from tuneline.training import loss_monitoring
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
from tuneline.training.loss_monitoring import judge

LIMITS = LossRulesConfig()
WITHOUT_PATIENCE = LossRulesConfig(plateau_evaluations=None)


def history(train, validation=()):
    """Entries as training logs them: a pass comes after the step it is named by."""
    entries = [
        {"step": i + 1, "loss": float(x), "task_loss": float(x)} for i, x in enumerate(train)
    ]
    passes = [{"step": int(s), "eval_loss": float(x)} for s, x in validation]
    return sorted([*entries, *passes], key=lambda e: (e["step"], "eval_loss" in e))


def curve(train, validation=()):
    return Curve.of(history(train, validation))


def trip_of(train, validation=(), limits=LIMITS):
    return Watch(limits).follow(history(train, validation))


def rule_of(train, validation=(), limits=LIMITS):
    trip = trip_of(train, validation, limits)
    return trip.rule if trip else None


@pytest.mark.parametrize("seed", range(20))
def test_clean_curves_trip_nothing_and_raise_no_alarm(seed):
    rng = np.random.default_rng(seed)
    train = [0.1 + 3 * math.exp(-i / 6) * rng.lognormal(0, 0.2) for i in range(40)]
    passes = [(s, 0.1 + 3 * math.exp(-s / 8) + rng.normal(0, 0.003)) for s in range(0, 41, 8)]
    assert rule_of(train, passes) is None
    found = judge(curve(train, passes), LIMITS, trained(ONLINE, steps=40))
    assert broken(found) == set()
    assert conclude(found) == Verdict.PASS
    # A long one of small steps: batches scatter by a fifth, and passes still creep down.
    train = [(0.05 + 2 / (1 + i / 20)) * rng.lognormal(0, 0.2) for i in range(400)]
    assert rule_of(train, [(s, 0.06 + 2 / (1 + s / 20)) for s in range(0, 401, 40)]) is None


SMALL = [0.01, 0.01, 0.01, 0.01, 0.3, 0.02, 0.2, 0.01]
LONE = [0.1 + 3 * math.exp(-i / 6) if i != 20 else 5.0 for i in range(40)]
# Three of them, before the running median has climbed.
THREE = [0.4] * 12 + [2.0, 2.0, 2.0]
UP = [3.0, 2.0, 1.0, 1.0, 1.0, *[2.4] * 8]
LENIENT = LossRulesConfig(divergence_share=1.0)


@pytest.mark.parametrize(
    ("train", "validation", "limits", "rules"),
    [
        # Small losses may jump by factors.
        (SMALL, (), LIMITS, (None,)),
        ([3, 2, math.nan, 2], (), LIMITS, ("nan",)),
        ([3, 2], [(2, math.inf)], LIMITS, ("nan",)),
        (LONE, (), LIMITS, (None,)),
        (THREE[:-1], (), LIMITS, (None,)),
        (THREE, (), LIMITS, ("spike", "divergence")),
        # From the very first step on, without any progress before.
        ([3.0, 3.2, 4.0, 5.0, 6.0, 7.0, 8.0], (), LIMITS, ("divergence",)),
        # Measured from what the validation pass said before, not from a batch that was easy.
        ([1.2, *[2.1] * 9], [(0, 2.1)], LIMITS, (None,)),
        ([1.2, *[2.1] * 9], (), LIMITS, ("divergence",)),
        # A limit that is set to allow it allows it.
        (UP, (), LIMITS, ("divergence",)),
        (UP, (), LENIENT, (None,)),
    ],
)
def test_which_rule_trips(train, validation, limits, rules):
    assert rule_of(train, validation, limits) in rules


def test_spikes_are_counted_and_fewer_stop_where_fewer_are_asked_for():
    assert spikes(curve(SMALL), 3.0).found == []
    assert [step for step, _, _ in spikes(curve(LONE), 3.0).found] == [21]
    assert spikes(curve(THREE), 3.0).longest == 3
    trip = trip_of(THREE, (), LossRulesConfig(spike_streak=2))
    assert (trip.rule, trip.step) == ("spike", 14)
    assert not_finite(curve([3, 2, math.nan, 2])) == [3]
    assert trip_of([3, 2, math.nan, 2]).step == 3


def test_a_step_that_rehearses_is_no_spike_and_breaks_no_streak():
    log = []
    for step, loss in enumerate(THREE, 1):
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


def test_divergence_trips_while_it_climbs_and_is_seen_after_it_recovered():
    climbing = [3.0, 2.5, 2.0, 1.8, 1.7, 1.9, 2.4, 2.9, 3.5, 4.0, 5.0, 5.5, 6.0]
    trip = trip_of(climbing)
    assert trip.rule == "divergence"
    assert trip.value > trip.limit
    assert trip.step < len(climbing)
    assert "climbed" in trip.sentence
    up_and_down = [3.0, 2.0, 1.0, 1.0, 1.0, *[6.0] * 6, *[1.0] * 8]
    climbed, limit = climb(curve(up_and_down), LIMITS.divergence_share)
    assert limit < climbed == 5.0


# Validation turns after step 20; what training does meanwhile says what that is.
TURNING = [(0, 3.0), (10, 1.0), (20, 0.9), (30, 1.2)]
STEADY = [1.0 + 0.02 * (i % 2) for i in range(20)]
RISING = [*STEADY, *(1.3 + 0.02 * (i % 2) for i in range(10))]
DOWN = [0.1 + 3 * math.exp(-i / 6) * (1 + 0.05 * (-1) ** i) for i in range(30)]


@pytest.mark.parametrize(
    ("train", "validation", "rule"),
    [
        # Validation up while training falls, or stays: overfitting.
        (DOWN, TURNING, "overfit"),
        ([*STEADY, *STEADY[:10]], TURNING, "overfit"),
        # Validation up and training up: it gets worse at everything.
        (RISING, TURNING, "divergence"),
        # Training up while validation still falls: neither.
        (RISING, [*TURNING[:3], (30, 0.8)], None),
        # Validation within a hundredth of a nat of its best: no answer changes.
        (DOWN[:20], [(0, 3.0), (10, 0.010), (20, 0.015)], None),
    ],
)
def test_overfitting_is_told_by_both_losses(train, validation, rule):
    trip = trip_of(train, validation)
    assert (trip.rule if trip else None) == rule
    if rule:
        assert trip.step == 30
        assert trip.value == pytest.approx(1.2 / 0.9)


def test_the_turn_of_the_validation_loss_is_measured():
    turned = curve(DOWN, TURNING)
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
    trip = trip_of(flat, validation)
    assert (trip.rule if trip else None) == rule
    if rule:
        assert (trip.value, trip.limit, trip.step) == (3, 3, validation[-1][0])


def test_a_slow_turn_while_training_falls_is_overfitting_and_no_plateau():
    passes = [(0, 3.0), (10, 0.9), (20, 0.93), (30, 0.96), (40, 0.99)]
    trip = trip_of([1.5 - 0.03 * i + 0.01 * (i % 3) for i in range(40)], passes)
    assert (trip.rule, trip.value, trip.limit) == ("overfit", 3, 3)
    assert "rose by 0.09 nats while the training loss fell" in trip.sentence


def test_patience_can_be_set_and_switched_off():
    passes = [(10 * i, x) for i, x in enumerate([3.0, 0.9, *[0.9] * 6])]
    flat = [1.0] * 70
    assert passes_without_gain(curve(flat, passes), 0.001) == 6
    assert trip_of(flat, passes, LossRulesConfig(plateau_evaluations=5)).step == 60
    assert rule_of(flat, passes, WITHOUT_PATIENCE) is None


def test_a_log_that_grows_is_followed_as_one_that_is_whole():
    log = history([*DOWN[:20], *[3.0] * 12], [(0, 3.1), (20, 0.5)])
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
    assert len(read.train) == 1
    assert read.optimised[1:] == ((2, 1.5),)
    assert read.validation[-1] == (2, math.inf)
    assert read.best == (0, 2.0)


ONLINE = {"tracker": "mlflow", "run_id": "abc", "url": "https://t/abc", "mode": "online"}
OFFLINE = {"tracker": "wandb", "run_id": "abc", "mode": "offline", "directory": "wandb/x"}
AWAY = {"tracker": "mlflow", "mode": "unreachable", "reason": "connection refused"}


def trained(*tracking, steps=12):
    known = {"tracking_seconds": 0.01, "tokens_per_second": 100.0}
    return TrainedRun(steps=steps, tracking=tracking, **known)


HEALTHY = trained(ONLINE)
GOOD = [3.0 / (1 + i) + 0.2 for i in range(12)]
CLIMBING = [*GOOD[:6], 6, 6, 6, 6, 6, 6]
SPIKED = [*GOOD[:6], 6.0, *GOOD[7:]]
# Both losses rise: that is no overfitting.
TURNED = [*STEADY[:6], *RISING[20:26]]
FALLING = [(0, 3.1), (6, 0.8), (12, 0.5)]
RISEN = [(0, 3.1), (6, 0.5), (12, 0.8)]
FLAT = [(0, 3.1), (3, 0.8), (6, 0.8), (9, 0.7995), (12, 0.8)]
NEVER_BETTER = [(0, 3.1), (6, 3.2), (12, 3.3)]
RISE = "last_over_best_validation_loss"


@pytest.mark.parametrize(
    ("train", "validation", "run", "names", "verdict"),
    [
        (GOOD, FALLING, HEALTHY, "", Verdict.PASS),
        # One tracker that can be watched is enough.
        (GOOD, FALLING, trained(OFFLINE, ONLINE), "", Verdict.PASS),
        (GOOD, FALLING, trained(OFFLINE), "live_tracking", Verdict.WARN),
        (GOOD, FALLING, trained(AWAY), "live_tracking", Verdict.WARN),
        (GOOD, FALLING, trained(), "live_tracking", Verdict.WARN),
        (GOOD, FALLING, trained({**ONLINE, "missed": 3}), "mlflow_entries_missed", Verdict.WARN),
        ([*GOOD[:-1], math.nan], FALLING, HEALTHY, "losses_not_a_number", Verdict.FAIL),
        (SPIKED, FALLING, HEALTHY, "spikes", Verdict.WARN),
        (CLIMBING, FALLING, HEALTHY, "spikes spikes_in_a_row climb_of_training_loss", Verdict.FAIL),
        (GOOD, RISEN, HEALTHY, RISE, Verdict.WARN),
        (TURNED, RISEN, HEALTHY, f"{RISE} training_loss_since_best_pass", Verdict.FAIL),
        (GOOD, FLAT, HEALTHY, "passes_without_gain", Verdict.WARN),
        (GOOD, NEVER_BETTER, HEALTHY, "best_validation_loss", Verdict.FAIL),
        # Steps that were not logged, and validation that was not watched.
        (GOOD[:6], FALLING, HEALTHY, "logged_steps", Verdict.FAIL),
        (GOOD, FALLING[:1], HEALTHY, "validation_passes best_validation_loss", Verdict.FAIL),
    ],
)
def test_each_rule_turns_the_verdict(train, validation, run, names, verdict):
    measurements = judge(curve(train, validation), LIMITS, run)
    assert broken(measurements) == set(names.split())
    assert conclude(measurements) == verdict


def test_limits_of_the_configuration_are_the_limits_of_the_evidence():
    limits = LossRulesConfig(spike_streak=5, overfit_ratio=1.5, plateau_evaluations=4)
    found = {m.name: m for m in judge(curve(GOOD, FALLING), limits, HEALTHY)}
    assert found["spikes_in_a_row"].limit == 5
    assert found[RISE].limit == 1.5
    assert found["passes_without_gain"].limit == 4
    off = {m.name: m for m in judge(curve(GOOD, FALLING), WITHOUT_PATIENCE, HEALTHY)}
    assert off["passes_without_gain"].rule is None


@pytest.mark.parametrize("steps", [6, 7])
def test_a_short_training_says_what_it_cannot_show(steps):
    summary = loss_monitoring.summarise(curve(GOOD[:steps], FALLING), HEALTHY, [])
    assert (f"{steps} steps are too few to show divergence" in summary) == (steps == 6)


def test_the_picture_shows_the_rule_that_tripped_and_curves_with_holes(tmp_path):
    stopped = Trip("overfit", 9, 1.3, 1.2, "the validation loss has risen")
    [axes] = loss_monitoring.picture(curve(GOOD, FALLING), 12, stopped).axes
    assert axes.get_title() == "stopped: the validation loss has risen"
    assert "stop: overfit" in [text.get_text() for text in axes.get_legend().get_texts()]
    holes = curve([3.0, math.nan, 2.0], [(0, 3.0), (3, math.inf)])
    stopped = Trip("nan", 2, math.nan, 0, "the loss at step 2 is not a number")
    loss_monitoring.picture(holes, 0, stopped).savefig(tmp_path / "loss.svg")
    assert (tmp_path / "loss.svg").stat().st_size > 5000


def test_the_curve_of_a_run_is_drawn_and_judged(trained, lab):
    run = lab(epochs=4)
    run.leave_plan()
    names = ("history.jsonl", "run.json", "checkpoints.json")
    run.leave("train", {name: trained.artifact("train", name) for name in names})
    evidence = run.execute("loss_monitoring", loss_monitoring.run)
    assert evidence.verdict == Verdict.WARN
    assert "no tracker was asked for" in evidence.summary
    picture = run.artifact("loss_monitoring", "loss.svg").read_bytes()
    assert picture.startswith(b"<?xml")
    assert len(picture) > 5000
