"""Item loss_monitoring: training was tracked, and its curve says that it can be trusted.

It judges the logged history by the rules that watched training while it ran
(`loss_rules`), draws the curve, and names the tracker's run. A run that nobody
could watch live (offline, or not tracked at all) warns. A rule that tripped has
stopped training early. Divergence, spikes in a row and a loss that is not a
number fail: the settings are wrong. Overfitting and a plateau warn: the adapter
kept is the best there was, so nothing is refused, but its learning rate never
came down as planned, and fewer passes over the rows would have done.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneline.config.loss_rules import LossRulesConfig
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.run import StepContext
from tuneline.training.loop.loss_history import read_history
from tuneline.training.loop.loss_rules import (
    OVERFIT_FLOOR_NATS,
    SURE_ERRORS,
    Curve,
    change_since_best,
    climb,
    not_finite,
    passes_without_gain,
    rise_of_validation,
    spikes,
    training_rose,
)
from tuneline.training.tracking.judged import tracking_measurements, tracking_told
from tuneline.training.tracking.tracked_run import runs_of


def judge(curve: Curve, limits: LossRulesConfig, run: Mapping[str, Any]) -> list[Measurement]:
    """The measurements of a training curve and its tracking.

    Args:
        curve: of the history.
        limits: from the configuration.
        run: `run.json` of training.
    """
    spiked = spikes(curve, limits.spike_factor)
    climbed, climb_limit = climb(curve, limits.divergence_share)
    first = curve.validation[0][1] if curve.validation else math.nan
    best = curve.best[1] if curve.best else math.nan
    return [
        measure("logged_steps", len(curve.optimised), "steps", ">=", run["steps"]),
        measure("validation_passes", len(curve.validation), "passes", ">=", 2),
        measure("losses_not_a_number", len(not_finite(curve)), "steps", "==", 0),
        measure("climb_of_training_loss", round(climbed, 4), "nats", "<=", round(climb_limit, 4)),
        measure("spikes", len(spiked.found), "steps", "==", 0, on_breach="warn"),
        measure("spikes_in_a_row", spiked.longest, "steps", "<", limits.spike_streak),
        measure("best_validation_loss", best, "nats", "<", first),
        measure("validation_loss_before_training", first, "nats"),
        *_validation(curve, limits),
        measure("stopped_early", bool(run["stopped"]), ""),
        *tracking_measurements(runs_of(run)),
        measure("tracking_seconds", run["tracking_seconds"], "s"),
        measure("tokens_per_second", run["tokens_per_second"], "1/s"),
    ]


def _validation(curve: Curve, limits: LossRulesConfig) -> list[Measurement]:
    """What the passes say of overfitting, divergence and plateau."""
    ratio = rise_of_validation(curve)
    change, error = change_since_best(curve)
    known = math.isfinite(error)
    moved: dict[str, Any] = {}
    if ratio > limits.overfit_ratio and training_rose(change, error):
        # Both losses rise: that is no overfitting.
        moved = {
            "rule": "<=",
            "limit": round(max(OVERFIT_FLOOR_NATS, SURE_ERRORS * error), 4),
        }
    since = passes_without_gain(curve, limits.plateau_nats)
    patience = limits.plateau_evaluations
    patient: dict[str, Any] = {"rule": "<", "limit": patience, "on_breach": "warn"}
    return [
        measure(
            "last_over_best_validation_loss",
            round(ratio, 4),
            "ratio",
            "<=",
            limits.overfit_ratio,
            on_breach="warn",
        ),
        measure(
            "training_loss_since_best_pass",
            round(change, 4) if known else None,
            "nats",
            noise=round(error, 4) if known else None,
            **moved,
        ),
        measure("passes_without_gain", since, "passes", **(patient if patience else {})),
    ]


def draw(path: Path, curve: Curve, best_step: int, stopped: Mapping[str, Any] | None) -> None:
    """Write the picture of a training; see `picture`."""
    picture(curve, best_step, stopped).savefig(path, dpi=110)


def picture(curve: Curve, best_step: int, stopped: Mapping[str, Any] | None) -> Any:
    """Training and validation loss over steps, the kept adapter, and the rule that tripped."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    if curve.optimised != curve.train:
        axes.plot(*_points(curve.optimised), color="#cccccc", linewidth=1, label="with rehearsal")
    axes.plot(*_points(curve.train), color="#7a9cc6", linewidth=1, label="training")
    axes.plot(*_points(curve.validation), color="#c0392b", marker="o", label="validation")
    axes.axvline(best_step, color="#2c7a4b", linestyle="--", linewidth=1, label="adapter kept")
    axes.set(xlabel="optimiser step", ylabel="loss, nats per token", title="Training")
    if stopped:
        axes.axvline(stopped["step"], color="black", linewidth=1, label=f"stop: {stopped['rule']}")
        axes.set_title(textwrap.fill(f"stopped: {stopped['sentence']}", 90), fontsize=9)
    positive = [v for _, v in (*curve.train, *curve.validation) if math.isfinite(v) and v > 0]
    if positive and max(positive) / min(positive) > 20:
        axes.set_yscale("log")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    return figure


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
    curve = Curve.of(history)
    draw(ctx.out / "loss.png", curve, best_step, trained["stopped"])
    measurements = judge(curve, ctx.config.training, trained)
    broken = [m for m in measurements if m.ok is False]
    return ctx.conclude(told(curve, trained, broken), measurements)
