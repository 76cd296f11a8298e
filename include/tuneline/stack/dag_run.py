"""One run of the DAG, by Airflow's API: started, looked at, ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import httpx

from tuneline.stack.layout import DAG_ID
from tuneline.stack.rest import Airflow

# How the operator marks a line of the pod's log.
_POD_LOG = "[base] "
# A run that was ended counts as ended when it was seen so this often in a row.
_STAYS, _STOP_TRIES, _LOOK_AGAIN_SECONDS = 3, 20, 0.5

Task = dict[str, Any]


class DagRun:
    """One run of the DAG."""

    def __init__(self, client: Airflow, run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        self._path = f"/dags/{DAG_ID}/dagRuns/{run_id}"

    def trigger(self, fields: Mapping[str, Any]) -> None:
        """Start it with a filled form."""
        self._client.call(
            "POST",
            f"/dags/{DAG_ID}/dagRuns",
            dag_run_id=self.run_id,
            logical_date=None,
            conf=dict(fields),
        )

    def state(self) -> str:
        """Airflow's word for how it stands."""
        return str(self._client.call("GET", self._path).json()["state"])

    def tasks(self) -> list[Task]:
        """Its task instances."""
        answer = self._client.call("GET", f"{self._path}/taskInstances?limit=500")
        return list(answer.json()["task_instances"])

    def run_uri(self) -> str | None:
        """URI of the run in the store, None before `prepare_run` has made it."""
        path = f"{self._path}/taskInstances/prepare_run/xcomEntries/return_value"
        answer = self._client.call("GET", path, ok=(404,))
        return str(answer.json()["value"]) if answer.is_success else None

    def failure(self, task: Task) -> str:
        """The sentence with which a task failed, from its log."""
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
        # A pod's failure names the pod first, then the reason that it left.
        if len(lines) > 1:
            return lines[1]
        # A step that broke without a reason said its last words in its log.
        events = [str(entry.get("event", "")) for entry in entries]
        said = [event.removeprefix(_POD_LOG) for event in events if event.startswith(_POD_LOG)]
        return said[-1].strip() if said else lines[0]

    def stop(self) -> None:
        """End it: its tasks are killed and their pods deleted.

        Airflow marks tasks that have not begun as skipped. A scheduler that is looking at the
        run at that moment may take it for one that succeeded, since nothing in it failed, so
        the state is set until it stays.
        """
        stayed = 0
        for _ in range(_STOP_TRIES):
            if stayed == 0:
                answer = self._client.call("PATCH", self._path, ok=(404, 409), state="failed")
                if answer.status_code == httpx.codes.NOT_FOUND:
                    return
            time.sleep(_LOOK_AGAIN_SECONDS)
            stayed = stayed + 1 if self.state() == "failed" else 0
            if stayed == _STAYS:
                return
