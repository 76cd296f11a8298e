"""Helper step sync_tracking: a training that nobody could watch live gets to its trackers.

An offline run of Weights & Biases is uploaded when a key is there now; a run that MLflow missed,
or of which it missed entries, is logged from the training's history when its server is there now.
It never fails: what could not be sent stays in the store, and the step can be run again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from tuneline.evidence import Record, measure
from tuneline.run import StepContext
from tuneline.training.loop.loss_history import read_history
from tuneline.training.tracking.description import Description, describe
from tuneline.training.tracking.live_metrics import replay
from tuneline.training.tracking.mlflow_run import open_mlflow
from tuneline.training.tracking.tracked_run import (
    SYNCED_FILE,
    TrackedRun,
    latest_runs,
    unsynced,
)

# An upload of a few megabytes; a server that is away must not hold a run up.
_UPLOAD_SECONDS = 300


def sync_wandb(folder: Path, tracked: TrackedRun) -> TrackedRun:
    """Upload an offline run by W&B's own command.

    Args:
        folder: its run directory, fetched from the store.
        tracked: the run.
    """
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
    """Log the training's history to MLflow, as far as MLflow does not have it.

    Args:
        ctx: of the step.
        description: of the run.
        tracked: the run.
    """
    opened, tracker = open_mlflow(description, ctx.log, tracked.run_id)
    if tracker is None:
        return replace(tracked, reason=opened.reason)
    replay(tracker, read_history(ctx.input("train", "history.jsonl")))
    return tracker.close(failed=False)


def sync(ctx: StepContext) -> list[TrackedRun]:
    """Send what can be sent now; the tracked runs as they are then."""
    trained = json.loads(ctx.input("train", "run.json").read_text())
    dataset = next(
        (ref.sha256 for ref in ctx.entry("train").inputs if ref.name.endswith("dataset.parquet")),
        "",
    )
    after = []
    for tracked in latest_runs(ctx.run):
        if not tracked.can_be_synced:
            after.append(tracked)
        elif tracked.tracker == "wandb":
            folder = ctx.input_dir("train", tracked.directory) if tracked.directory else None
            after.append(sync_wandb(folder, tracked) if folder else tracked)
        else:
            description = describe(
                ctx.run,
                key=tracked.key,
                settings=trained["hyperparameters"],
                dataset_sha256=dataset,
            )
            after.append(sync_mlflow(ctx, description, tracked))
    return after


def run(ctx: StepContext) -> Record:
    """Sync; writes `tracking.json`."""
    wanted = {tracked.tracker for tracked in unsynced(ctx.run)}
    after = sync(ctx)
    document = {"tracking": [asdict(tracked) for tracked in after]}
    (ctx.out / SYNCED_FILE).write_text(json.dumps(document, indent=1))
    words = [_told(tracked) for tracked in after if tracked.tracker in wanted]
    left = sum(tracked.can_be_synced for tracked in after)
    return ctx.record(
        "; ".join(words) or "nothing to sync",
        [measure("synced", len(wanted) - left, "runs"), measure("not_synced", left, "runs")],
    )


def _told(tracked: TrackedRun) -> str:
    if tracked.can_be_synced:
        return f"{tracked.title}: nothing was sent ({tracked.reason})"
    return f"{tracked.title}: synced to {tracked.url or tracked.run_id}"
