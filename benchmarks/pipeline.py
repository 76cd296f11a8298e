"""The pipeline: the share of the latest demo run that was orchestration, not work.

It is one minus the work of the steps over the wall time of the run, from the `timings.json` that
the demo writes. Steps that ran side by side count twice, so that with them it is a lower bound.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.contest.contest import Options
from benchmarks.contest.report import Report, summarise
from tuneline import __version__
from tuneline.errors import UserError
from tuneline.stack.layout import find_layout
from tuneline.stack.timings import SCHEMA

OURS = "tuneline"
SECONDS = (
    "run_seconds",
    "work_seconds",
    "pod_seconds",
    "queued_seconds",
    "worker_task_seconds",
    "setup_seconds",
    "airflow_start_seconds",
)


def run(options: Options) -> Report:
    """Read the timings of the latest run, or of the file given as input."""
    path = options.input or latest_timings(find_layout().home / "runs")
    document = read_timings(path)
    version = __version__
    share = float(document["overhead_share"])
    results = [summarise(OURS, version, "overhead_share", [share], "share")]
    results += [summarise(OURS, version, name, [float(document[name])], "s") for name in SECONDS]
    tasks = document["tasks"]
    workload = {
        "run": document["run"],
        "tasks": len(tasks),
        "failed_tasks": sum(task["state"] == "failed" for task in tasks),
    }
    return Report(workload, results, {"overhead_share": share})


def latest_timings(runs: Path) -> Path:
    """Return the file of timings of the run that ended last.

    Raises:
        UserError: if no run left one.
    """
    found = list(runs.glob("*/timings.json"))
    if not found:
        raise UserError(f"no run in {runs} left its timings; `make demo` makes one")
    return max(found, key=lambda path: path.stat().st_mtime)


def read_timings(path: Path) -> dict[str, Any]:
    """Return the content of a file of timings.

    Raises:
        UserError: if it is another kind of file, or no task ran.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as timings of a run: {error}") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a file of timings ({SCHEMA}), as `make demo` writes it")
    if document["overhead_share"] is None:
        raise UserError(f"{path} is of a run in which no task ran; `make demo` makes another")
    return document
