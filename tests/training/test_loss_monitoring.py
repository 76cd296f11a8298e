"""The curve and its tracking are judged by stated rules."""

import math

import pytest

from tuneline.evidence import Verdict, conclude
from tuneline.training import loss_monitoring
from tuneline.training.loss_monitoring import draw, judge
from tuneline.training.loss_rules import Curve, Thresholds

LIMITS = Thresholds(spike_factor=3.0, overfit_ratio=1.2)
ONLINE = {"tracker": "mlflow", "run_id": "abc", "url": "https://t/abc", "mode": "online"}
OFFLINE = {"tracker": "wandb", "run_id": "abc", "mode": "offline", "directory": "wandb/x"}
AWAY = {"tracker": "mlflow", "mode": "unreachable", "reason": "connection refused"}


def history(train, validation):
    points = tuple((i + 1, float(x)) for i, x in enumerate(train))
    return Curve(
        points,
        points,
        tuple((int(s), float(x)) for s, x in validation),
    )


def trained(*tracking, stopped=None, steps=12):
    return {
        "steps": steps,
        "stopped": stopped,
        "tracking": list(tracking),
        "tracking_seconds": 0.01,
        "tokens_per_second": 100.0,
    }


GOOD = [3.0 / (1 + i) + 0.2 for i in range(12)]
FALLING = [(0, 3.1), (6, 0.8), (12, 0.5)]


@pytest.mark.parametrize(
    ("train", "validation", "run", "names", "verdict"),
    [
        (GOOD, FALLING, trained(ONLINE), set(), Verdict.PASS),
        # One tracker that can be watched is enough.
        (GOOD, FALLING, trained(OFFLINE, ONLINE), set(), Verdict.PASS),
        (GOOD, FALLING, trained(OFFLINE), {"live_tracking"}, Verdict.WARN),
        (GOOD, FALLING, trained(AWAY), {"live_tracking"}, Verdict.WARN),
        (GOOD, FALLING, trained(), {"live_tracking"}, Verdict.WARN),
        (
            GOOD,
            FALLING,
            trained({**ONLINE, "missed": 3}),
            {"mlflow_entries_missed"},
            Verdict.WARN,
        ),
        ([*GOOD[:-1], math.nan], FALLING, trained(ONLINE), {"losses_not_a_number"}, Verdict.FAIL),
        (
            [*GOOD[:6], 6.0, *GOOD[7:]],
            FALLING,
            trained(ONLINE),
            {"spikes"},
            Verdict.WARN,
        ),
        (
            [*GOOD[:6], 6, 6, 6, 6, 6, 6],
            FALLING,
            trained(ONLINE),
            {"spikes", "spikes_in_a_row", "climb_of_training_loss"},
            Verdict.FAIL,
        ),
        (
            GOOD,
            [(0, 3.1), (6, 0.5), (12, 0.8)],
            trained(ONLINE),
            {"last_over_best_validation_loss"},
            Verdict.WARN,
        ),
        # Training that never beat the untrained model.
        (
            GOOD,
            [(0, 3.1), (6, 3.2), (12, 3.3)],
            trained(ONLINE),
            {"best_validation_loss"},
            Verdict.FAIL,
        ),
        # Steps that were not logged, and validation that was not watched.
        (GOOD[:6], FALLING, trained(ONLINE), {"logged_steps"}, Verdict.FAIL),
        (
            GOOD,
            FALLING[:1],
            trained(ONLINE),
            {"validation_passes", "best_validation_loss"},
            Verdict.FAIL,
        ),
    ],
)
def test_each_rule_turns_the_verdict(train, validation, run, names, verdict):
    measurements = judge(history(train, validation), LIMITS, run)
    assert {m.name for m in measurements if m.ok is False} == names
    assert conclude(measurements) == verdict


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
    draw(tmp_path / "loss.png", curve, 0, {"rule": "nan", "step": 2})
    assert (tmp_path / "loss.png").stat().st_size > 5000
