"""A run of the main DAG, started, followed line by line and ended through Airflow's API."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import httpx

from tuneline.catalogue import DATA_ORDER, ITEMS
from tuneline.errors import TunelineError, UserError
from tuneline.machine.airflow_api import AirflowApi
from tuneline.run import Run
from tuneline.stack.layout import Say, main_dag_id
from tuneline.verdicts import check_item

# The operator writes this before each line of a pod's log.
_POD_LOG = "[base] "
# A run counts as ended after it was seen in that state this many times in a row.
_SEEN_ENDED, _STOP_TRIES, _LOOK_AGAIN_SECONDS = 3, 20, 0.5

Task = dict[str, Any]

_FINAL = {"success", "failed"}
_ENDED = {"success", "failed", "skipped", "upstream_failed", "removed"}
# A look costs the API server half a second on a small machine.
_POLL_SECONDS = 3.0
# A long task must not look like one that hangs.
_STILL_SECONDS = 20.0
# Characters of "[ 123.4 s] ", which stands before every line.
_STAMP_WIDTH = 11
_NO_TERMINAL = 1 << 20
_ITEM_IDS = {item.id for item in ITEMS}


class DagRun:
    """One run of the main DAG, or of another model's."""

    def __init__(self, client: AirflowApi, run_id: str, dag_id: str | None = None) -> None:
        self.run_id = run_id
        self._client, self._dag_id = client, dag_id or main_dag_id()
        self._path = f"/dags/{self._dag_id}/dagRuns/{run_id}"

    def trigger(self, fields: Mapping[str, Any]) -> None:
        """Start the run with a filled form."""
        self._client.trigger(self._dag_id, self.run_id, fields)

    def state(self) -> str:
        """Return the run's state in Airflow's terms."""
        return self._client.state(self._dag_id, self.run_id)

    def tasks(self) -> list[Task]:
        """Return the task instances of the run."""
        answer = self._client.call("GET", f"{self._path}/taskInstances?limit=500")
        return list(answer.json()["task_instances"])

    def run_uri(self) -> str | None:
        """Return the URI of the run in the store, None before `prepare_run` has made it."""
        uri = self._client.xcom(self._dag_id, self.run_id, "prepare_run")
        return None if uri is None else str(uri)

    def failure(self, task: Task) -> str:
        """Return the sentence with which a task failed, taken from its log."""
        path = f"{self._path}/taskInstances/{task['task_id']}/logs/{task['try_number']}"
        query = f"full_content=true&map_index={task.get('map_index', -1)}"
        answer = self._client.call("GET", f"{path}?{query}", ok=(404,))
        entries = answer.json().get("content", []) if answer.is_success else []
        details = [
            e["error_detail"] for e in entries if isinstance(e, dict) and e.get("error_detail")
        ]
        if not details:
            return f"failed; its log in the UI says why ({task['task_id']})"
        lines = str(details[-1][0]["exc_value"]).splitlines()
        if not lines[0].startswith("Pod "):
            return lines[0]
        # The failure of a pod is its name on the first line, then the reason that it left.
        if len(lines) > 1:
            return lines[1]
        # A step that broke without leaving a reason has it on the last line of its log.
        events = [str(entry.get("event", "")) for entry in entries]
        output = [event.removeprefix(_POD_LOG) for event in events if event.startswith(_POD_LOG)]
        return output[-1].strip() if output else lines[0]

    def stop(self) -> None:
        """End the run: Airflow kills its tasks, which deletes their pods.

        Airflow marks tasks that have not begun as skipped. A scheduler that reads the run at that
        moment may conclude that it succeeded, since nothing in it failed. The state is therefore
        set until it stays.
        """
        seen_ended = 0
        for _ in range(_STOP_TRIES):
            if seen_ended == 0:
                answer = self._client.call("PATCH", self._path, ok=(404, 409), state="failed")
                if answer.status_code == httpx.codes.NOT_FOUND:
                    return
            time.sleep(_LOOK_AGAIN_SECONDS)
            seen_ended = seen_ended + 1 if self.state() == "failed" else 0
            if seen_ended == _SEEN_ENDED:
                return


def follow(run: DagRun, say: Say) -> str:
    """Follow a run to its end and return its final state."""
    printed: set[tuple[str, int]] = set()
    last_line = time.monotonic()
    while True:
        state = run.state()
        tasks = {_name(task): task for task in run.tasks()}
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
    running = [name for name, task in tasks.items() if task["state"] in ("running", "deferred")]
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


def _name(task: Task) -> str:
    """Return the task's id, with its index if it is one of several mapped ones."""
    index = task.get("map_index", -1)
    return str(task["task_id"]) if index < 0 else f"{task['task_id']}[{index}]"


def _line(run: DagRun, task: Task, tasks: Mapping[str, Task]) -> str | None:
    """Return the line of a task that ended, None if it adds nothing."""
    name, state = _name(task), str(task["state"])
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
