"""A training as trackers see it: opened, sent while it trains, closed; light to import.

TRL's and transformers' integrations log every training argument, absolute paths of the machine
among them; the trackers get the same metrics under the names that those use.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import psutil

from tuneline.artifacts.training import TrackedRun
from tuneline.errors import first_line
from tuneline.run import Run
from tuneline.training.resources.out_of_memory import GIB

# Length of the dataset's hash in tags, as people compare it.
_VERSION_DIGITS = 16

NAMES = {
    "loss": "train/loss",
    "task_loss": "train/task_loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens": "train/tokens",
    "tokens_per_second": "train/tokens_per_second",
    "eval_loss": "eval/loss",
    "eval_loss_error": "eval/loss_error",
}


@dataclass(frozen=True)
class Description:
    """The description of a run that trackers show: no secret, no path of this machine.

    `key` is stable over retries, so that a resumed training goes on in the same run.
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


def short_reason(error: BaseException) -> str:
    """Return the first line of a tracker's error, cut to 200 characters."""
    return first_line(error)[:200]


def metrics_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of an entry of the trainer's log or of `history.jsonl`."""
    if "loss" not in entry and "eval_loss" not in entry:
        return {}
    return {name: float(entry[key]) for key, name in NAMES.items() if key in entry}


def memory_in_use(device: str) -> dict[str, float]:
    """Return the memory of this process, GiB: on the machine, and on the GPU where there is one."""
    found = {"train/memory_gib": psutil.Process().memory_info().rss / GIB}
    if device == "cuda":
        import torch

        found["train/gpu_memory_gib"] = torch.cuda.memory_reserved() / GIB
    return found


def replay(tracker: Tracker, history: Sequence[Mapping[str, Any]]) -> None:
    """Log the part of a training's history that a tracker does not have."""
    trained, evaluated = tracker.steps_logged()
    for entry in history:
        had = trained if "loss" in entry else evaluated
        metrics = metrics_of(entry)
        if metrics and entry["step"] > had:
            tracker.log(entry["step"], metrics)


class Tracking:
    """The tracked runs of a training: one for each tracker that was asked for.

    `trackers` are those that could be opened; `seconds` what training has waited for them.
    """

    def __init__(self) -> None:
        self.runs: list[TrackedRun] = []
        self.trackers: dict[int, Tracker] = {}
        self.seconds = 0.0
        self._had: dict[int, tuple[int, int]] = {}

    def add(self, opened: tuple[TrackedRun, Tracker | None]) -> None:
        """Add a run that was opened, or could not be opened."""
        run, tracker = opened
        if tracker is not None:
            self.trackers[len(self.runs)] = tracker
        self.runs.append(run)

    def begin(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Send the steps before a resumed training's checkpoint that a tracker does not have."""
        started = time.monotonic()
        for place, tracker in self.trackers.items():
            self._had[place] = tracker.steps_logged()
            replay(tracker, history)
        self.seconds += time.monotonic() - started

    def log(self, step: int, entry: Mapping[str, Any], device: str) -> None:
        """Send an entry of the trainer's log at once.

        A resumed training logs the steps after its checkpoint again; a tracker gets each once.
        """
        started = time.monotonic()
        metrics = metrics_of(entry)
        if metrics:
            if "loss" in entry:
                metrics |= memory_in_use(device)
            for place, tracker in self.trackers.items():
                trained, evaluated = self._had.get(place, (-1, -1))
                if step > (trained if "loss" in entry else evaluated):
                    tracker.log(step, metrics)
        self.seconds += time.monotonic() - started

    def close(self, *, failed: bool) -> None:
        """End all runs."""
        for place, tracker in self.trackers.items():
            self.runs[place] = tracker.close(failed=failed)
