"""What loss_monitoring says of tracking: could anybody watch this run while it trained?"""

from __future__ import annotations

from collections.abc import Sequence

from tuneline.evidence import Measurement, measure
from tuneline.training.tracking.tracked_run import TrackedRun

_BEST_FIRST = ("online", "offline", "unreachable")


def tracking_measurements(runs: Sequence[TrackedRun]) -> list[Measurement]:
    """Measurements of the tracked runs; a training that nobody could watch live warns."""
    modes = {run.mode for run in runs}
    best = next((mode for mode in _BEST_FIRST if mode in modes), "none")
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


def tracking_told(runs: Sequence[TrackedRun]) -> str:
    """The same in words."""
    if not runs:
        return "no tracker was asked for, nobody could watch it live"
    words = [_told(run) for run in runs]
    if all(run.mode != "online" for run in runs):
        words.append("nobody could watch it live")
    return ", ".join(words)


def _told(run: TrackedRun) -> str:
    if run.mode == "online":
        missed = f" ({run.missed} log entries did not get there)" if run.missed else ""
        return f"watched live at {run.url or run.title}{missed}"
    if run.mode == "offline":
        return f"tracked offline by {run.title} ({run.reason})"
    return f"{run.title} could not be reached ({run.reason})"
