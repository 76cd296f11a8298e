"""The curve and its tracking are judged by stated rules."""

import math

import numpy as np
import pytest
from tests.lab.runs import broken

from tuneline.artifacts.training import TrainedRun, Trip
from tuneline.config.training import LossRulesConfig
from tuneline.evidence import Verdict, conclude
from tuneline.training import loss_monitoring
from tuneline.training.loop.loss_rules import Curve
from tuneline.training.loss_monitoring import judge

LIMITS = LossRulesConfig()
WITHOUT_PATIENCE = LossRulesConfig(plateau_evaluations=None)
ONLINE = {"tracker": "mlflow", "run_id": "abc", "url": "https://t/abc", "mode": "online"}
OFFLINE = {"tracker": "wandb", "run_id": "abc", "mode": "offline", "directory": "wandb/x"}
AWAY = {"tracker": "mlflow", "mode": "unreachable", "reason": "connection refused"}


def history(train, validation):
    points = tuple((i + 1, float(x)) for i, x in enumerate(train))
    return Curve(points, points, tuple((int(s), float(x)) for s, x in validation))


def trained(*tracking, stopped=None, steps=12):
    return TrainedRun(
        steps=steps,
        stopped=stopped,
        tracking=tracking,
        tracking_seconds=0.01,
        tokens_per_second=100.0,
    )


HEALTHY = trained(ONLINE)
GOOD = [3.0 / (1 + i) + 0.2 for i in range(12)]
CLIMBING = [*GOOD[:6], 6, 6, 6, 6, 6, 6]
SPIKED = [*GOOD[:6], 6.0, *GOOD[7:]]
# Both losses rise: that is no overfitting.
TURNED = [*(1.0 + 0.02 * (i % 2) for i in range(6)), *(1.3 + 0.02 * (i % 2) for i in range(6))]
FALLING = [(0, 3.1), (6, 0.8), (12, 0.5)]
RISEN = [(0, 3.1), (6, 0.5), (12, 0.8)]
FLAT = [(0, 3.1), (3, 0.8), (6, 0.8), (9, 0.7995), (12, 0.8)]
NEVER_BETTER = [(0, 3.1), (6, 3.2), (12, 3.3)]


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
        (GOOD, RISEN, HEALTHY, "last_over_best_validation_loss", Verdict.WARN),
        (
            TURNED,
            RISEN,
            HEALTHY,
            "last_over_best_validation_loss training_loss_since_best_pass",
            Verdict.FAIL,
        ),
        (GOOD, FLAT, HEALTHY, "passes_without_gain", Verdict.WARN),
        (GOOD, NEVER_BETTER, HEALTHY, "best_validation_loss", Verdict.FAIL),
        # Steps that were not logged, and validation that was not watched.
        (GOOD[:6], FALLING, HEALTHY, "logged_steps", Verdict.FAIL),
        (GOOD, FALLING[:1], HEALTHY, "validation_passes best_validation_loss", Verdict.FAIL),
    ],
)
def test_each_rule_turns_the_verdict(train, validation, run, names, verdict):
    measurements = judge(history(train, validation), LIMITS, run)
    assert broken(measurements) == set(names.split())
    assert conclude(measurements) == verdict


@pytest.mark.parametrize("seed", range(20))
def test_clean_curves_raise_no_alarm(seed):
    rng = np.random.default_rng(seed)
    train = [0.1 + 3 * math.exp(-i / 6) * rng.lognormal(0, 0.2) for i in range(40)]
    passes = [(s, 0.1 + 3 * math.exp(-s / 8) + rng.normal(0, 0.003)) for s in range(0, 41, 8)]
    found = judge(history(train, passes), LIMITS, trained(ONLINE, steps=40))
    assert broken(found) == set()
    assert conclude(found) == Verdict.PASS


def test_limits_of_the_configuration_are_the_limits_of_the_evidence():
    limits = LossRulesConfig(spike_streak=5, overfit_ratio=1.5, plateau_evaluations=4)
    found = {m.name: m for m in judge(history(GOOD, FALLING), limits, trained(ONLINE))}
    assert found["spikes_in_a_row"].limit == 5
    assert found["last_over_best_validation_loss"].limit == 1.5
    assert found["passes_without_gain"].limit == 4
    off = {m.name: m for m in judge(history(GOOD, FALLING), WITHOUT_PATIENCE, trained(ONLINE))}
    assert off["passes_without_gain"].rule is None


def test_the_picture_shows_the_rule_that_tripped(tmp_path):
    curve = history(GOOD, FALLING)
    loss_monitoring.picture(curve, 12, None).savefig(tmp_path / "calm.png")
    stopped = Trip("overfit", 9, 1.3, 1.2, "the validation loss has risen")
    loss_monitoring.picture(curve, 12, stopped).savefig(tmp_path / "tripped.png")
    calm, tripped = ((tmp_path / f"{n}.png").read_bytes() for n in ("calm", "tripped"))
    assert calm != tripped
    shown = drawn_texts(curve, stopped)
    assert "stopped: the validation loss has risen" in shown
    assert "stop: overfit" in shown


def drawn_texts(curve, stopped):
    """Title and legend of the picture."""
    figure = loss_monitoring.picture(curve, 12, stopped)
    [axes] = figure.axes
    return [axes.get_title(), *(text.get_text() for text in axes.get_legend().get_texts())]


def test_the_curve_of_a_run_is_drawn_and_judged(trained_run, tmp_path):
    evidence = trained_run.execute("loss_monitoring", loss_monitoring.run)
    assert evidence.verdict == Verdict.WARN
    assert "no tracker was asked for" in evidence.summary
    picture = trained_run.artifact("loss_monitoring", "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5000


@pytest.fixture
def trained_run(trained, lab):
    run = lab(epochs=4)
    files = {
        name: trained.artifact("train", name)
        for name in ("history.jsonl", "run.json", "checkpoints.json")
    }
    run.leave("train", files)
    return run


def test_a_curve_with_holes_is_drawn(tmp_path):
    curve = history([3.0, math.nan, 2.0], [(0, 3.0), (3, math.inf)])
    stopped = Trip("nan", 2, math.nan, 0, "the loss at step 2 is not a number")
    loss_monitoring.picture(curve, 0, stopped).savefig(tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 5000
