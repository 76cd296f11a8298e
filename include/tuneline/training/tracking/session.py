"""The trackers of a training run, open for as long as it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.artifacts.training import TrackedRun
from tuneline.training.tracking.tracked_run import Description, Tracker

if TYPE_CHECKING:
    from tuneline.training.tracking.live_metrics import LogLive


class Tracking:
    """The tracked runs of a training.

    Attributes:
        runs: one for each tracker that was asked for.
        trackers: those that could be opened, by their place in `runs`.
    """

    def __init__(self) -> None:
        self.runs: list[TrackedRun] = []
        self.trackers: dict[int, Tracker] = {}
        self._live: LogLive | None = None

    def callbacks(self) -> list[Any]:
        """Return the callback that sends the trainer's log to the trackers, if there are any."""
        if not self.trackers:
            return []
        from tuneline.training.tracking.live_metrics import LogLive

        self._live = LogLive(list(self.trackers.values()))
        return [self._live]

    @property
    def seconds(self) -> float:
        """The time that training has waited for trackers, in seconds."""
        return round(self._live.seconds, 4) if self._live else 0.0

    def add(self, opened: tuple[TrackedRun, Tracker | None]) -> None:
        """Add a run that was opened, or could not be opened."""
        run, tracker = opened
        if tracker is not None:
            self.trackers[len(self.runs)] = tracker
        self.runs.append(run)

    def close(self, *, failed: bool) -> None:
        """End all runs."""
        for place, tracker in self.trackers.items():
            self.runs[place] = tracker.close(failed=failed)


@contextmanager
def track(
    trackers: Sequence[str], description: Description, *, out: Path, log: Callable[[str], None]
) -> Iterator[Tracking]:
    """Open the trackers' runs for the time of training.

    Args:
        trackers: trackers of the configuration; none for no tracking.
        description: description of the run.
        out: output folder of the step.
        log: function that takes a line.

    Yields:
        The open trackers.
    """
    tracking = Tracking()
    if "mlflow" in trackers:
        from tuneline.training.tracking.mlflow_run import open_mlflow

        tracking.add(open_mlflow(description, log))
    if "wandb" in trackers:
        from tuneline.training.tracking.wandb_run import open_wandb

        tracking.add(open_wandb(description, out, log))
    for run in tracking.runs:
        if run.url:
            log(f"watch it live in {run.title}: {run.url}")
    try:
        yield tracking
    except BaseException:
        tracking.close(failed=True)
        raise
    tracking.close(failed=False)
