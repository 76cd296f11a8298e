"""Item loss_monitoring: training was tracked, and its curve says that it can be trusted.

It judges the logged history by the rules that watched training while it ran
(`loss_rules`), draws the curve, and names the tracker's run. A run that nobody
could watch live (offline, or not tracked at all) warns. A rule that tripped has
stopped training early; divergence and a loss that is not a number fail,
overfitting warns, since the adapter kept is the one from before it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneline.evidence import Evidence, Measurement, measure
from tuneline.run import StepContext
from tuneline.training.loss_rules import (
    SPIKE_STREAK,
    Curve,
    Thresholds,
    longest_streak,
    not_finite,
    overfit,
    rise,
    spikes,
)
from tuneline.training.tracking.judged import tracking_measurements, tracking_told
from tuneline.training.tracking.tracked_run import runs_of
from tuneline.training.train import read_history


def judge(curve: Curve, limits: Thresholds, run: Mapping[str, Any]) -> list[Measurement]:
    """The measurements of a training curve and its tracking.

    Args:
        curve: of the history.
        limits: from the configuration.
        run: `run.json` of training.
    """
    found = spikes(curve, limits.spike_factor)
    climbed, climb_limit = rise(curve)
    first = curve.validation[0][1] if curve.validation else math.nan
    best = curve.best[1] if curve.best else math.nan
    return [
        measure("logged_steps", len(curve.optimised), "steps", ">=", run["steps"]),
        measure("validation_passes", len(curve.validation), "passes", ">=", 2),
        measure("losses_not_a_number", len(not_finite(curve)), "steps", "==", 0),
        measure("climb_of_training_loss", round(climbed, 4), "nats", "<=", round(climb_limit, 4)),
        measure("spikes", len(found), "steps", "==", 0, on_breach="warn"),
        measure("spikes_in_a_row", longest_streak(curve, found), "steps", "<", SPIKE_STREAK),
        measure("best_validation_loss", best, "nats", "<", first),
        measure("validation_loss_before_training", first, "nats"),
        measure(
            "last_over_best_validation_loss",
            round(overfit(curve), 4),
            "ratio",
            "<=",
            limits.overfit_ratio,
            on_breach="warn",
        ),
        measure("stopped_early", bool(run["stopped"]), ""),
        *tracking_measurements(runs_of(run)),
        measure("tracking_seconds", run["tracking_seconds"], "s"),
        measure("tokens_per_second", run["tokens_per_second"], "1/s"),
    ]


def draw(path: Path, curve: Curve, best_step: int, stopped: Mapping[str, Any] | None) -> None:
    """Draw training and validation loss over steps, and where the kept adapter is."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    if curve.optimised != curve.train:
        axes.plot(*_points(curve.optimised), color="#cccccc", linewidth=1, label="with rehearsal")
    axes.plot(*_points(curve.train), color="#7a9cc6", linewidth=1, label="training")
    axes.plot(*_points(curve.validation), color="#c0392b", marker="o", label="validation")
    axes.axvline(best_step, color="#2c7a4b", linestyle="--", linewidth=1, label="adapter kept")
    if stopped:
        axes.axvline(stopped["step"], color="black", linewidth=1, label=f"stop: {stopped['rule']}")
    axes.set(xlabel="optimiser step", ylabel="loss, nats per token", title="Training")
    positive = [v for _, v in (*curve.train, *curve.validation) if math.isfinite(v) and v > 0]
    if positive and max(positive) / min(positive) > 20:
        axes.set_yscale("log")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _points(series: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    finite = [(step, value) for step, value in series if math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def told(curve: Curve, run: Mapping[str, Any], broken: Sequence[Measurement]) -> str:
    """What the item says in a sentence."""
    first = curve.validation[0][1] if curve.validation else math.nan
    best = curve.best or (0, math.nan)
    words = [f"validation loss {first:.4f} → {best[1]:.4f} at step {best[0]} of {run['steps']}"]
    if run["stopped"]:
        words.append(
            f"training stopped early: {run['stopped']['sentence']}; the adapter of step "
            f"{best[0]} is kept"
        )
    names = [m.name for m in broken if m.name != "live_tracking"]
    if names:
        words.append("outside its limit: " + ", ".join(names))
    words.append(tracking_told(runs_of(run)))
    return "; ".join(words)


def run(ctx: StepContext) -> Evidence:
    """Judge the curve and its tracking; writes `loss.png`."""
    history = read_history(ctx.input("train", "history.jsonl"))
    trained = json.loads(ctx.input("train", "run.json").read_text())
    best_step = json.loads(ctx.input("train", "checkpoints.json").read_text())["best_step"]
    config = ctx.config.training
    curve = Curve.of(history)
    draw(ctx.out / "loss.png", curve, best_step, trained["stopped"])
    limits = Thresholds(config.spike_factor, config.overfit_ratio)
    measurements = judge(curve, limits, trained)
    broken = [m for m in measurements if m.ok is False]
    return ctx.conclude(told(curve, trained, broken), measurements)
