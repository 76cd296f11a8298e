"""A run at a tracker, as `run.json` of training and the evidence describe it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tuneline.run import Run
from tuneline.store import NotThere

Mode = Literal["online", "offline", "unreachable"]

# What people read in a sentence.
TITLES = {"mlflow": "MLflow", "wandb": "Weights & Biases"}

# What sync_tracking leaves: the tracked runs as they are after it.
SYNCED_FILE = "tracking.json"


@dataclass(frozen=True)
class TrackedRun:
    """A run at a tracker.

    Attributes:
        tracker: mlflow or wandb.
        mode: online (a server took the metrics as they came), offline (they lie in a file of
            the tracker's own) or unreachable (nothing was tracked).
        run_id: the tracker's id of it; empty when unreachable.
        url: page where it can be watched; None unless online.
        directory: of an offline run's files, relative to the step's output; else empty.
        reason: why it is not online; else empty.
        missed: log entries that the tracker did not get.
        key: of the training, stable over retries.
    """

    tracker: str
    mode: Mode
    run_id: str = ""
    url: str | None = None
    directory: str = ""
    reason: str = ""
    missed: int = 0
    key: str = ""

    @property
    def title(self) -> str:
        """The tracker's name as people write it."""
        return TITLES[self.tracker]

    @property
    def can_be_synced(self) -> bool:
        """Whether something of it could still be sent to a server."""
        held = self.mode == "offline" and bool(self.directory)
        return held or self.mode == "unreachable" or self.missed > 0


class Tracker(Protocol):
    """An open run at a tracker. Its calls neither raise nor hold training up."""

    def steps_logged(self) -> tuple[int, int]:
        """Last step whose training loss and whose validation loss it has; -1 for none."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of a step."""

    def close(self, *, failed: bool) -> TrackedRun:
        """End the run; what became of it."""


def runs_of(trained: Mapping[str, Any]) -> list[TrackedRun]:
    """The tracked runs that `run.json` of training names."""
    return [TrackedRun(**entry) for entry in trained["tracking"]]


def latest_runs(run: Run) -> list[TrackedRun]:
    """The tracked runs of a run's training as they are now, sync_tracking included.

    It reads two small files of the store, so that a worker can ask before it starts a pod.
    """
    trained = _document(run, "train", "run.json")
    synced = _document(run, "sync_tracking", SYNCED_FILE)
    if trained is None:
        return []
    done = {(entry.tracker, entry.key): entry for entry in runs_of(synced or {"tracking": []})}
    return [done.get((entry.tracker, entry.key), entry) for entry in runs_of(trained)]


def unsynced(run: Run) -> list[TrackedRun]:
    """Tracked runs of which something could still be sent to a server."""
    return [tracked for tracked in latest_runs(run) if tracked.can_be_synced]


def _document(run: Run, step: str, name: str) -> Any:
    try:
        return json.loads(run.store.get_bytes(run.step_key(step, name)))
    except NotThere:
        return None
