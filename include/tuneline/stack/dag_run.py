"""One run of the main DAG, started, watched and ended through Airflow's API."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import httpx

from tuneline.stack.layout import main_dag_id
from tuneline.stack.rest import Airflow

# The operator writes this before each line of a pod's log.
_POD_LOG = "[base] "
# A run counts as ended after it was seen in that state this many times in a row.
_SEEN_ENDED, _STOP_TRIES, _LOOK_AGAIN_SECONDS = 3, 20, 0.5

Task = dict[str, Any]


class DagRun:
    """One run of the main DAG."""

    def __init__(self, client: Airflow, run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        self._runs = f"/dags/{main_dag_id()}/dagRuns"
        self._path = f"{self._runs}/{run_id}"

    def trigger(self, fields: Mapping[str, Any]) -> None:
        """Start the run with a filled form."""
        self._client.call(
            "POST",
            self._runs,
            # An earlier try, whose answer was lost, has started it.
            ok=(httpx.codes.CONFLICT,),
            dag_run_id=self.run_id,
            logical_date=None,
            conf=dict(fields),
        )

    def state(self) -> str:
        """Return the run's state in Airflow's terms."""
        return str(self._client.call("GET", self._path).json()["state"])

    def tasks(self) -> list[Task]:
        """Return the task instances of the run."""
        answer = self._client.call("GET", f"{self._path}/taskInstances?limit=500")
        return list(answer.json()["task_instances"])

    def run_uri(self) -> str | None:
        """Return the URI of the run in the store, None before `prepare_run` has made it."""
        path = f"{self._path}/taskInstances/prepare_run/xcomEntries/return_value"
        answer = self._client.call("GET", path, ok=(404,))
        return str(answer.json()["value"]) if answer.is_success else None

    def failure(self, task: Task) -> str:
        """Return the sentence with which a task failed, taken from its log."""
        path = f"{self._path}/taskInstances/{task['task_id']}/logs/{task['try_number']}"
        answer = self._client.call("GET", f"{path}?full_content=true", ok=(404,))
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
