"""The time of a run, split into set-up, Airflow, pods and the work itself."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tuneline.artifacts.evaluation import ANSWER_HOLDOUT, holdout_part
from tuneline.artifacts.training import trial_key
from tuneline.catalogue import STEPS
from tuneline.errors import TunelineError
from tuneline.run import Run

SCHEMA = "tuneline/timings/1"

_STEPS = {step.id for step in STEPS}
# The DAG gives the pods of its sweep these names.
_SWEEP, _RANK = "sweep", re.compile(r"r = (\d+)")


def breakdown(
    tasks: Sequence[dict[str, Any]], run: Run | None, *, setup: float, start: float
) -> dict[str, Any]:
    """Return the content of `timings.json`: the time of each task that ran, in seconds.

    Args:
        tasks: task instances as Airflow's API gives them.
        run: run whose evidence states the time of the work, None when there is none.
        setup: time to build the environments, in seconds.
        start: time to start Airflow, in seconds.
    """
    # Tasks that were skipped or not reached have dates as well, but no process ran them.
    ran = [t for t in tasks if t["state"] in ("success", "failed") and t["start_date"]]
    rows = [_row(task, run) for task in ran]
    rows.sort(key=lambda row: str(row["start"]))
    ends = [_time(row["end"]) for row in rows]
    wall = (max(ends) - _time(rows[0]["start"])).total_seconds() if rows else 0.0
    work = sum(row["work_seconds"] or 0.0 for row in rows)
    seconds = {
        "setup": setup,
        "airflow_start": start,
        "run": wall,
        "work": work,
        "pod": sum(row["pod_seconds"] or 0.0 for row in rows),
        "queued": sum(row["queued_seconds"] for row in rows),
        "worker_task": sum(row["run_seconds"] for row in rows if row["work_seconds"] is None),
    }
    return {
        "schema": SCHEMA,
        "run": run.uri if run else None,
        **{f"{name}_seconds": round(value, 2) for name, value in seconds.items()},
        "overhead_share": round(1 - min(work, wall) / wall, 4) if wall else None,
        "tasks": rows,
    }


def summary(document: dict[str, Any]) -> str:
    """Return the breakdown in one line."""
    ran = len(document["tasks"])
    overhead = document["pod_seconds"] + document["queued_seconds"]
    overhead += document["worker_task_seconds"]
    per_task = overhead / ran if ran else 0.0
    return (
        f"set-up {document['setup_seconds']:.0f} s, Airflow start "
        f"{document['airflow_start_seconds']:.0f} s, run {document['run_seconds']:.0f} s: work "
        f"{document['work_seconds']:.0f} s; pods {document['pod_seconds']:.0f} s, waiting "
        f"{document['queued_seconds']:.0f} s, checks {document['worker_task_seconds']:.0f} s "
        f"({per_task:.1f} s for each of {ran} tasks)"
    )


def write(document: dict[str, Any], folder: Path) -> Path:
    """Write `timings.json` into a folder and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "timings.json"
    path.write_text(json.dumps(document, indent=1))
    return path


def _row(task: dict[str, Any], run: Run | None) -> dict[str, Any]:
    start, end = _time(task["start_date"]), _time(task["end_date"])
    ready = task.get("scheduled_when") or task.get("queued_when") or task["start_date"]
    seconds = (end - start).total_seconds()
    work = _work(task, run)
    return {
        "task": task["task_id"],
        "map_index": task.get("map_index", -1),
        "state": task["state"],
        "try_number": task["try_number"],
        "start": task["start_date"],
        "end": task["end_date"],
        "queued_seconds": round(max(0.0, (start - _time(ready)).total_seconds()), 3),
        "run_seconds": round(seconds, 3),
        "work_seconds": work,
        "pod_seconds": None if work is None else round(max(0.0, seconds - work), 3),
    }


def _work(task: dict[str, Any], run: Run | None) -> float | None:
    """Return the time that a step or one of its parts worked, in seconds; None for other tasks."""
    task_id = task["task_id"]
    if run is None:
        return None
    try:
        if task_id in _STEPS:
            return run.entry(task_id).seconds
        rank = _RANK.fullmatch(task.get("rendered_map_index") or "")
        if task_id == _SWEEP and rank is not None:
            stored = run.store.get_bytes(trial_key(run, int(rank.group(1))))
            return float(json.loads(stored)["seconds"])
        part = holdout_part(task["map_index"]).find(run) if task_id == ANSWER_HOLDOUT else None
        return part.seconds if part else None
    except TunelineError:
        return None


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
