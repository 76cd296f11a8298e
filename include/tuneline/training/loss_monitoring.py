"""loss_monitoring: prove that training was tracked and that its curve can be trusted.

The history is judged by the rules that watched training (`loop/loss_rules`) and drawn; a run that
nobody could watch live warns. Divergence, spikes in a row and a loss that is not a number fail: the
settings are wrong. Overfitting and a plateau warn: the adapter kept is the best there was.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from tuneline.artifacts.training import (
    CHECKPOINTS,
    HISTORY,
    PLAN,
    TRAINED,
    HistoryEntry,
    TrackedRun,
    TrainedRun,
    Trip,
)
from tuneline.config.training import LossRulesConfig
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.plots import save
from tuneline.step_context import StepContext
from tuneline.training.loop.loss_rules import (
    DIVERGENCE_WINDOW,
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


def judge(curve: Curve, limits: LossRulesConfig, trained: TrainedRun) -> list[Measurement]:
    """Measure a training curve and its tracking."""
    spiked = spikes(curve, limits.spike_factor)
    climbed, climb_limit = climb(curve, limits.divergence_share)
    first, (_, best) = curve.first, curve.best or (0, math.nan)
    return [
        measure("logged_steps", len(curve.optimised), "steps", ">=", trained.steps),
        measure("validation_passes", len(curve.validation), "passes", ">=", 2),
        measure("losses_not_a_number", len(not_finite(curve)), "steps", "==", 0),
        measure("climb_of_training_loss", round(climbed, 4), "nats", "<=", round(climb_limit, 4)),
        measure("spikes", len(spiked.found), "steps", "==", 0, on_breach="warn"),
        measure("spikes_in_a_row", spiked.longest, "steps", "<", limits.spike_streak),
        measure("best_validation_loss", best, "nats", "<", first),
        measure("validation_loss_before_training", first, "nats"),
        *_validation(curve, limits),
        measure("stopped_early", bool(trained.stopped), ""),
        *_tracking(trained.tracking),
        measure("tracking_seconds", trained.tracking_seconds, "s"),
        measure("tokens_per_second", trained.tokens_per_second, "1/s"),
    ]


def count_rows(history: Sequence[HistoryEntry], effective_batch: int) -> list[Measurement]:
    """Compare the rows of each step but the last with those that were planned."""
    counted = [entry["rows"] for entry in history if "rows" in entry][:-1]
    other = sum(rows != effective_batch for rows in counted)
    name = "gradient_accumulation.steps_of_other_size"
    return [measure(name, other, "steps", "==", 0)] if counted else []


def _validation(curve: Curve, limits: LossRulesConfig) -> list[Measurement]:
    """Measure overfitting, divergence and plateau on the validation passes."""
    ratio, allowed = rise_of_validation(curve), limits.overfit_ratio
    change, error = change_since_best(curve)
    moved: dict[str, Any] = {}
    if math.isfinite(error):
        moved["noise"] = round(error, 4)
    if ratio > allowed and training_rose(change, error):
        # Both losses rise: that is no overfitting.
        limit = round(max(OVERFIT_FLOOR_NATS, SURE_ERRORS * error), 4)
        moved |= {"rule": "<=", "limit": limit}
    since, patience = passes_without_gain(curve, limits.plateau_nats), limits.plateau_evaluations
    patient: dict[str, Any] = {"rule": "<", "limit": patience, "on_breach": "warn"}
    rise, shift = "last_over_best_validation_loss", "training_loss_since_best_pass"
    return [
        measure(rise, round(ratio, 4), "ratio", "<=", allowed, on_breach="warn"),
        measure(shift, round(change, 4) if "noise" in moved else None, "nats", **moved),
        measure("passes_without_gain", since, "passes", **(patient if patience else {})),
    ]


def _tracking(runs: Sequence[TrackedRun]) -> list[Measurement]:
    """Measure the tracked runs; a training that nobody could watch live warns."""
    modes = {run.mode for run in runs}
    best = next((mode for mode in ("online", "offline", "unreachable") if mode in modes), "none")
    found = [
        measure("live_tracking", best, "", "==", "online", on_breach="warn"),
        measure("tracker", ", ".join(run.tracker for run in runs) or "none", ""),
    ]
    for run in runs:
        name = run.tracker
        found += [
            measure(f"{name}_mode", run.mode, ""),
            measure(f"{name}_run_id", run.run_id or "none", ""),
            measure(f"{name}_link", run.url or run.directory or "none", ""),
            measure(f"{name}_entries_missed", run.missed, "entries", "==", 0, on_breach="warn"),
        ]
    return found


def _tracking_summary(runs: Sequence[TrackedRun]) -> str:
    if not runs:
        return "no tracker was asked for, no one could watch it live"
    clauses = []
    for run in runs:
        missed = f" ({run.missed} log entries did not get there)" if run.missed else ""
        said = {
            "online": f"watched live at {run.url or run.title}{missed}",
            "offline": f"tracked offline by {run.title} ({run.reason})",
        }
        clauses.append(said.get(run.mode, f"{run.title} could not be reached ({run.reason})"))
    if all(run.mode != "online" for run in runs):
        clauses.append("no one could watch it live")
    return ", ".join(clauses)


def picture(curve: Curve, best_step: int, stopped: Trip | None) -> Any:
    """Plot the losses over steps, with the kept adapter and the rule that tripped."""
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
        axes.axvline(stopped.step, color="black", linewidth=1, label=f"stop: {stopped.rule}")
        axes.set_title(textwrap.fill(f"stopped: {stopped.sentence}", 90), fontsize=9)
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


def summarise(curve: Curve, trained: TrainedRun, measurements: Sequence[Measurement]) -> str:
    """Say in a sentence what training came to, and which measurements are outside their limits."""
    step, best = curve.best or (0, math.nan)
    clauses = [f"validation loss {curve.first:.4f} → {best:.4f} at step {step} of {trained.steps}"]
    if trained.stopped:
        clauses.append(
            f"training stopped early: {trained.stopped.sentence}; the adapter of step {step} is "
            "kept"
        )
    # The clause on tracking says it anyway.
    outside = [m.name for m in measurements if m.ok is False and m.name != "live_tracking"]
    if outside:
        clauses.append("outside its limit: " + ", ".join(outside))
    if len(curve.train) < DIVERGENCE_WINDOW:
        clauses.append(f"{len(curve.train)} steps are too few to show divergence")
    clauses.append(_tracking_summary(trained.tracking))
    return "; ".join(clauses)


def run(ctx: StepContext) -> Evidence:
    """Judge the curve, its tracking and the size of its steps; writes `loss.svg`."""
    history = HISTORY.read(ctx)
    curve = Curve.of(history)
    trained, best_step = TRAINED.read(ctx), CHECKPOINTS.read(ctx).best_step
    save(picture(curve, best_step, trained.stopped), ctx.out / "loss.svg")
    measurements = judge(curve, ctx.config.training, trained)
    measurements += count_rows(history, PLAN.read(ctx).effective_batch)
    return ctx.conclude(summarise(curve, trained, measurements), measurements)
