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

SECONDS = [
    f"{name}_seconds"
    for name in ("run", "work", "pod", "queued", "worker_task", "setup", "airflow_start")
]


def run(options: Options) -> Report:
    """Read the timings of the latest run, or of the file given as input."""
    path = options.input or latest_timings(find_layout().home / "runs")
    document = read_timings(path)
    share = float(document["overhead_share"])
    found = [("overhead_share", share, "share"), *((n, float(document[n]), "s") for n in SECONDS)]
    tasks = document["tasks"]
    workload = {
        "run": document["run"],
        "tasks": len(tasks),
        "failed_tasks": sum(task["state"] == "failed" for task in tasks),
    }
    results = [
        summarise("tuneline", __version__, name, [value], unit) for name, value, unit in found
    ]
    return Report(workload, results, {"overhead_share": share})


def latest_timings(runs: Path) -> Path:
    """Return the file of timings of the run that ended last."""
    found = list(runs.glob("*/timings.json"))
    if not found:
        raise UserError(f"no run in {runs} left its timings; `make demo` makes one")
    return max(found, key=lambda path: path.stat().st_mtime)


def read_timings(path: Path) -> dict[str, Any]:
    """Return a file of timings; another kind of file, or one without a task, is refused."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as timings of a run: {error}") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a file of timings ({SCHEMA}), as `make demo` writes it")
    if document["overhead_share"] is None:
        raise UserError(f"{path} is of a run in which no task ran; `make demo` makes another")
    return document
