"""Follow a run through Airflow's API and print a line for each task that ends."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import suppress

from tuneline.catalogue import DATA_ORDER, ITEMS
from tuneline.errors import TunelineError, UserError
from tuneline.run import Run
from tuneline.stack.dag_run import DagRun, Task
from tuneline.stack.lifecycle import Say
from tuneline.verdicts import check_item

_FINAL = {"success", "failed"}
_ENDED = {"success", "failed", "skipped", "upstream_failed", "removed"}
_POLL_SECONDS = 1.0
# A long task must not look like one that hangs.
_STILL_SECONDS = 20.0
# Characters of "[ 123.4 s] ", which stands before every line.
_STAMP_WIDTH = 11
_NO_TERMINAL = 1 << 20

_ITEM_IDS = {item.id for item in ITEMS}


def follow(run: DagRun, say: Say) -> str:
    """Follow a run to its end.

    Returns:
        Its final state.
    """
    printed: set[tuple[str, int]] = set()
    last_line = time.monotonic()
    while True:
        state = run.state()
        tasks = {task["task_id"]: task for task in run.tasks()}
        for name, task in tasks.items():
            mark = (name, int(task["try_number"]))
            if mark in printed or task["state"] not in _ENDED | {"up_for_retry"}:
                continue
            printed.add(mark)
            if line := _line(run, task, tasks):
                say(line)
                last_line = time.monotonic()
        if state in _FINAL:
            return state
        if time.monotonic() - last_line > _STILL_SECONDS:
            last_line = time.monotonic()
            if line := _waiting_line(run, state, tasks):
                say(line)
        time.sleep(_POLL_SECONDS)


def _waiting_line(run: DagRun, state: str, tasks: Mapping[str, Task]) -> str | None:
    """Return what a run is waiting for, None when nothing runs."""
    running = [name for name, task in tasks.items() if task["state"] == "running"]
    waiting = [name for name, task in tasks.items() if task["state"] == "awaiting_input"]
    if waiting:
        return f"waiting for a person: {', '.join(waiting)} (Required Actions in the UI)"
    if running:
        uri, lines = run.run_uri(), dict[str, str]()
        # A store that is away for a moment must not end what only watches.
        with suppress(TunelineError):
            lines = Run.open(uri).in_progress() if uri else {}
        return _fit("; ".join(f"{name:<26} {lines.get(name, 'running')}" for name in running))
    return "queued: another run of this DAG is active" if state == "queued" else None


def _line(run: DagRun, task: Task, tasks: Mapping[str, Task]) -> str | None:
    """Return the line of a task that ended, None if it adds nothing."""
    name, state = str(task["task_id"]), str(task["state"])
    item = name.removeprefix("gate_")
    if state in ("skipped", "upstream_failed", "removed"):
        return None
    if state == "up_for_retry":
        return f"{name:<26} try {task['try_number']} failed, trying again: {run.failure(task)}"
    # A data item is judged by its gate, the others by their own task.
    if item in _ITEM_IDS and (item != name or item not in DATA_ORDER):
        return _item_line(run, item, tasks.get(item, task), task)
    if state == "failed":
        return f"{name:<26} FAILED: {run.failure(task)}"
    return None if item in _ITEM_IDS else f"{name:<26} done {task['duration'] or 0:8.1f} s"


def _item_line(run: DagRun, item: str, pod: Task, judge: Task) -> str:
    seconds = float(pod["duration"] or 0)
    uri = run.run_uri()
    try:
        status = check_item(uri, item) if uri else None
    except (TunelineError, UserError) as error:
        return f"{item:<26} unreadable evidence: {error}"
    if status is None:
        return f"{item:<26} FAILED: {run.failure(judge)}"
    line = f"{item:<26} {status.verdict:<14} {seconds:6.1f} s  {status.summary}"
    if judge["state"] == "failed":
        return f"{line} | STOPPED THE RUN: {run.failure(judge)}"
    return _fit(line)


def _fit(line: str) -> str:
    """Cut a line to the width of the terminal; the table at the end has all of it."""
    width = shutil.get_terminal_size((_NO_TERMINAL, 0)).columns - _STAMP_WIDTH
    return line if len(line) <= width else line[: max(width - 1, 40)] + "…"
