"""sync_tracking: send a training that nobody could watch live to its trackers afterwards.

An offline run of Weights & Biases is uploaded; what MLflow missed is logged from the history. The
step never fails: what could not be sent stays in the store, and it can be run again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.training import (
    HISTORY,
    SYNCED,
    TRAINED,
    SyncedRuns,
    TrackedRun,
    latest_runs,
    unsynced,
)
from tuneline.evidence import Record, measure
from tuneline.step_context import StepContext
from tuneline.training.tracking.mlflow_run import open_mlflow
from tuneline.training.tracking.runs import Description, describe, replay

# An upload of a few megabytes; a server that is away must not hold a run up.
_UPLOAD_SECONDS = 300


def sync_wandb(folder: Path, tracked: TrackedRun) -> TrackedRun:
    """Upload an offline run, fetched from the store, by W&B's own command."""
    if not os.environ.get("WANDB_API_KEY"):
        return replace(tracked, reason="WANDB_API_KEY is not set")
    command = [sys.executable, "-m", "wandb", "sync", "--yes", "--include-synced", str(folder)]
    # The host's name stays here, as in a run that is tracked live.
    env = {**os.environ, "WANDB_X_DISABLE_MACHINE_INFO": "true"}
    try:
        done = subprocess.run(
            command,
            env=env,
            capture_output=True,
            text=True,
            timeout=_UPLOAD_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return replace(tracked, reason=f"the upload took more than {_UPLOAD_SECONDS} s")
    said = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode:
        return replace(tracked, reason=said[-1][:200] if said else f"exit {done.returncode}")
    link = next((word for line in said for word in line.split() if "/runs/" in word), None)
    return replace(tracked, mode="online", url=link, reason="")


def sync_mlflow(ctx: StepContext, description: Description, tracked: TrackedRun) -> TrackedRun:
    """Log the part of the training's history that MLflow does not have."""
    opened, tracker = open_mlflow(description, ctx.log, tracked.run_id)
    if tracker is None:
        return replace(tracked, reason=opened.reason)
    replay(tracker, HISTORY.read(ctx))
    return tracker.close(failed=False)


def sync(ctx: StepContext) -> list[TrackedRun]:
    """Send what can be sent now, and return the tracked runs as they are then."""
    settings = TRAINED.read(ctx).hyperparameters
    inputs = ctx.entry("train").inputs
    dataset = next((ref.sha256 for ref in inputs if ref.name.endswith(DATASET.name)), "")
    after = []
    for tracked in latest_runs(ctx.run):
        if not tracked.can_be_synced:
            after.append(tracked)
        elif tracked.tracker == "wandb":
            folder = ctx.input_dir("train", tracked.directory) if tracked.directory else None
            after.append(sync_wandb(folder, tracked) if folder else tracked)
        else:
            description = describe(
                ctx.run, key=tracked.key, settings=settings, dataset_sha256=dataset
            )
            after.append(sync_mlflow(ctx, description, tracked))
    return after


def _sentence(tracked: TrackedRun) -> str:
    if tracked.can_be_synced:
        return f"{tracked.title}: nothing was sent ({tracked.reason})"
    return f"{tracked.title}: synced to {tracked.url or tracked.run_id}"


def run(ctx: StepContext) -> Record:
    """Sync; writes `tracking.json`."""
    wanted = {tracked.tracker for tracked in unsynced(ctx.run)}
    after = sync(ctx)
    SYNCED.write(ctx, SyncedRuns(tracking=after))
    sentences = [_sentence(tracked) for tracked in after if tracked.tracker in wanted]
    left = sum(tracked.can_be_synced for tracked in after)
    return ctx.record(
        "; ".join(sentences) or "nothing to sync",
        [measure("synced", len(wanted) - left, "runs"), measure("not_synced", left, "runs")],
    )
