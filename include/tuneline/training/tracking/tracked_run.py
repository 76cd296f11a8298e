"""A training run as trackers see it, and the tracked runs of a run of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from tuneline.artifacts.training import SYNCED, TRAINED, TrackedRun
from tuneline.run import Run

# Length of the dataset's hash in tags, as people compare it.
_VERSION_DIGITS = 16


@dataclass(frozen=True)
class Description:
    """The description of a run that trackers show: no secret, no path of this machine.

    Attributes:
        project: experiment in MLflow, project in Weights & Biases.
        name: name of the run, for people.
        key: stable over retries, so that a resumed training goes on in the same run.
        settings: hyperparameters.
        tags: identity of run and dataset.
    """

    project: str
    name: str
    key: str
    settings: Mapping[str, Any]
    tags: Mapping[str, str]


def describe(
    run: Run, *, key: str, settings: Mapping[str, Any], dataset_sha256: str
) -> Description:
    """Describe the training of a run to trackers."""
    tags = {"tuneline.run_id": run.run_id, "tuneline.dataset": dataset_sha256[:_VERSION_DIGITS]}
    if not run.uri.startswith("file:"):
        tags["tuneline.run"] = run.uri
    return Description(
        project=run.config.training.tracking_project,
        name=run.run_id,
        key=key,
        settings={name: without_path(value) for name, value in settings.items()},
        tags=tags,
    )


def without_path(value: Any) -> Any:
    """Return a value; of a path on this machine its last part, which names the model or file."""
    if isinstance(value, str) and (value.startswith(("/", "~", "./", "../", "file:"))):
        return value.rstrip("/").rsplit("/", 1)[-1]
    return value


def without_password(address: str) -> str:
    """Return an address without user and password, which can be shown."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


class Tracker(Protocol):
    """An open run at a tracker. Its calls neither raise nor hold training up."""

    def steps_logged(self) -> tuple[int, int]:
        """Return the last steps whose training loss and validation loss it has; -1 for none."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of a step."""

    def close(self, *, failed: bool) -> TrackedRun:
        """End the run and return its final state."""


def latest_runs(run: Run) -> list[TrackedRun]:
    """Return the tracked runs of a run's training as they are now, sync_tracking included.

    It reads two small files of the store, so that an Airflow worker can ask before it starts a
    pod.
    """
    trained, synced = TRAINED.find(run), SYNCED.find(run)
    if trained is None:
        return []
    done = {(entry.tracker, entry.key): entry for entry in (synced.tracking if synced else [])}
    return [done.get((entry.tracker, entry.key), entry) for entry in trained.tracking]


def unsynced(run: Run) -> list[TrackedRun]:
    """Return the tracked runs of which a part could still be sent to a server."""
    return [tracked for tracked in latest_runs(run) if tracked.can_be_synced]
