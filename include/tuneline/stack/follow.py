"""Follow a run over Airflow's API, a line for each task that ends."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping

from tuneline.catalogue import ITEMS
from tuneline.errors import TunelineError, UserError
from tuneline.stack.dag_run import DagRun, Task
from tuneline.stack.lifecycle import Say
from tuneline.verdicts import check_item

_FINAL = {"success", "failed"}
_ENDED = {"success", "failed", "skipped", "upstream_failed", "removed"}
_POLL_SECONDS = 1.0
# A task that takes long shall not look like one that hangs.
_STILL_SECONDS = 60.0
# Of "[ 123.4 s] ", which comes before every line.
_STAMP_WIDTH = 11
_NO_TERMINAL = 1 << 20

_ITEM_IDS = {item.id for item in ITEMS}


def follow(run: DagRun, say: Say) -> str:
    """Follow a run to its end.

    Returns:
        Its final state.
    """
    told: set[tuple[str, int]] = set()
    last_said = time.monotonic()
    while True:
        state = run.state()
        tasks = {task["task_id"]: task for task in run.tasks()}
        for name, task in tasks.items():
            mark = (name, int(task["try_number"]))
            if mark in told or task["state"] not in _ENDED | {"up_for_retry"}:
                continue
            told.add(mark)
            if line := _line(run, task, tasks):
                say(line)
                last_said = time.monotonic()
        if state in _FINAL:
            return state
        if time.monotonic() - last_said > _STILL_SECONDS:
            last_said = time.monotonic()
            running = [name for name, task in tasks.items() if task["state"] == "running"]
            waiting = [name for name, task in tasks.items() if task["state"] == "awaiting_input"]
            if waiting:
                say(f"waiting for a person: {', '.join(waiting)} (Required Actions in the UI)")
            elif running:
                say(f"still running: {', '.join(running)}")
            elif state == "queued":
                say("queued: another run of this DAG is active")
        time.sleep(_POLL_SECONDS)


def _line(run: DagRun, task: Task, tasks: Mapping[str, Task]) -> str | None:
    """What to say of a task that ended; None for one that says nothing new."""
    name, state = str(task["task_id"]), str(task["state"])
    item = name.removeprefix("check_").removeprefix("gate_")
    checks = item != name
    if state in ("skipped", "upstream_failed", "removed"):
        return None
    if state == "up_for_retry":
        return f"{name:<26} try {task['try_number']} failed, trying again: {run.failure(task)}"
    if checks and item in _ITEM_IDS:
        return _item_line(run, item, tasks.get(item, task), task)
    if state == "failed":
        return f"{name:<26} FAILED: {run.failure(task)}"
    # The pod of an item is told of with its check.
    return None if name in _ITEM_IDS else f"{name:<26} done {task['duration'] or 0:8.1f} s"


def _item_line(run: DagRun, item: str, pod: Task, check: Task) -> str:
    seconds = float(pod["duration"] or 0)
    uri = run.run_uri()
    try:
        status = check_item(uri, item) if uri else None
    except (TunelineError, UserError) as error:
        return f"{item:<26} unreadable evidence: {error}"
    if status is None:
        return f"{item:<26} FAILED: {run.failure(check)}"
    line = f"{item:<26} {status.verdict:<14} {seconds:6.1f} s  {status.summary}"
    if check["state"] == "failed":
        return f"{line} | STOPPED THE RUN: {run.failure(check)}"
    return _fit(line)


def _fit(line: str) -> str:
    """Cut a line to the terminal; the table at the end has all of it."""
    width = shutil.get_terminal_size((_NO_TERMINAL, 0)).columns - _STAMP_WIDTH
    return line if len(line) <= width else line[: max(width - 1, 40)] + "…"
