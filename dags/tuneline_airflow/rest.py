"""Airflow's REST API as tasks use it: runs, their notes, and backfills.

Tasks have no access to Airflow's database. The connection `tuneline_api` (type http) says where
the API is and as whom to log in; the user needs the rights to trigger runs and to backfill.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import date
from typing import Any
from urllib.parse import quote

import httpx
from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException

from tuneline.errors import RetryableError, UserError
from tuneline.store import open_store, store_of

CONNECTION = "tuneline_api"
# The XCom in which a task names the run that it starts.
_STARTS = "starts"
_TIMEOUT_SECONDS = 30
_LONGEST_NOTE = 1000

_log = logging.getLogger(__name__)


class AirflowApi:
    """A client that logs in with the connection `tuneline_api`.

    Raises:
        UserError: if there is no such connection.
    """

    def __init__(self) -> None:
        try:
            connection = BaseHook.get_connection(CONNECTION)
        except (AirflowNotFoundException, AirflowException):
            raise UserError(
                f"there is no Airflow connection {CONNECTION!r}; add one of type http whose host "
                "is the address of the API server (http://host:8080), with login and password of "
                "a user who may trigger runs and backfills"
            ) from None
        host = connection.host or ""
        scheme = "" if "://" in host else f"{connection.schema or 'http'}://"
        port = f":{connection.port}" if connection.port else ""
        self._login = {"username": connection.login, "password": connection.password}
        self._http = httpx.Client(base_url=f"{scheme}{host}{port}", timeout=_TIMEOUT_SECONDS)

    @property
    def login(self) -> str | None:
        """The user as whom it logs in."""
        return self._login["username"]

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> None:
        """Start a run; one of that id that exists is left as it is."""
        body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
        self._call("POST", f"/dags/{dag_id}/dagRuns", body, ok=(409,))

    def state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a run: queued, running, success or failed."""
        return str(self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}").json()["state"])

    def task_state(self, dag_id: str, run_id: str, task_id: str) -> str | None:
        """Return the state of a task of a run, None if it has none yet."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        answer = self._call("GET", path, ok=(404,))
        return answer.json().get("state") if answer.is_success else None

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str) -> Any:
        """Return a value that a task of a run has pushed, None if there is none."""
        place = "/dags/{}/dagRuns/{}/taskInstances/{}/xcomEntries/{}"
        parts = (quote(part, safe="") for part in (dag_id, run_id, task_id, key))
        answer = self._call("GET", place.format(*parts), ok=(404,))
        return answer.json()["value"] if answer.is_success else None

    def has_pool(self, name: str) -> bool:
        """Return True if there is a pool of that name."""
        return self._call("GET", f"/pools/{quote(name, safe='')}", ok=(404,)).is_success

    def is_paused(self, dag_id: str) -> bool:
        """Return True if the DAG is paused, so that its runs stay queued."""
        return bool(self._call("GET", f"/dags/{dag_id}").json()["is_paused"])

    def unpause(self, dag_id: str) -> bool:
        """Return True if the DAG was paused, and let it run from now on."""
        paused = self.is_paused(dag_id)
        if paused:
            self._call("PATCH", f"/dags/{dag_id}", {"is_paused": False})
        return paused

    def note(self, dag_id: str, run_id: str, text: str) -> None:
        """Write the note of a run, which the UI shows beside it."""
        body = {"note": text[:_LONGEST_NOTE]}
        self._call("PATCH", f"/dags/{dag_id}/dagRuns/{run_id}?update_mask=note", body)

    def backfills(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the last backfills of a DAG, the newest first."""
        answer = self._call("GET", f"/backfills?dag_id={dag_id}&order_by=-id&limit=50")
        return list(answer.json()["backfills"])

    def dry_run(self, request: Mapping[str, Any]) -> list[str]:
        """Return the logical dates of the runs that a backfill would make."""
        answer = self._call("POST", "/backfills/dry_run", request).json()
        return [str(run["logical_date"]) for run in answer["backfills"]]

    def backfill(self, request: Mapping[str, Any]) -> bool:
        """Start a backfill; return False if another one of the DAG is active."""
        answer = self._call("POST", "/backfills", request, ok=(409,))
        return answer.is_success

    def failed_days(self, dag_id: str, first: date, last: date) -> list[str]:
        """Return the days of backfilled runs that failed."""
        query = (
            f"logical_date_gte={first}T00:00:00Z&logical_date_lte={last}T23:59:59Z"
            "&state=failed&limit=100"
        )
        runs = self._call("GET", f"/dags/{dag_id}/dagRuns?{query}").json()["dag_runs"]
        return sorted(str(run["logical_date"])[:10] for run in runs)

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        ok: tuple[int, ...] = (),
    ) -> httpx.Response:
        try:
            if "Authorization" not in self._http.headers:
                self._log_in()
            answer = self._http.request(method, f"/api/v2{path}", json=body)
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                self._log_in()
                answer = self._http.request(method, f"/api/v2{path}", json=body)
        except httpx.HTTPError as error:
            raise RetryableError(
                f"Airflow's API does not answer at {self._http.base_url} ({error})"
            ) from None
        if answer.is_success or answer.status_code in ok:
            return answer
        said = f"Airflow's API: {method} {path}: {answer.status_code} {answer.text[:300]}"
        # SQLite locks its database for a moment now and then.
        if answer.is_server_error:
            raise RetryableError(said)
        raise UserError(said)

    def _log_in(self) -> None:
        answer = self._http.post("/auth/token", json=self._login)
        if not answer.is_success:
            raise UserError(
                f"Airflow's API at {self._http.base_url} refuses the login of the connection "
                f"{CONNECTION!r} ({answer.status_code})"
            )
        self._http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"


def start_main(
    context: Any, main: str, run_id: str, reason: str, overrides: Mapping[str, Any], **more: Any
) -> None:
    """Start a run of the main DAG, once.

    Args:
        context: context of the task that starts it.
        more: what `run.json` keeps besides the DAG, run and task that started it.

    Raises:
        UserError: if the main DAG is paused, so that the run would wait for ever.
    """
    ti, api = context["ti"], AirflowApi()
    if api.is_paused(main):
        raise UserError(
            f"{main} is paused, so its run would wait; unpause it, then clear this task"
        )
    trigger = {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id, **more}
    # The form takes YAML, of which JSON is a part.
    text = json.dumps(overrides, ensure_ascii=False) if overrides else ""
    # Before it starts, so that it can ask.
    ti.xcom_push(key=_STARTS, value=f"{main}/{run_id}")
    api.trigger(main, run_id, {"reason": reason, "trigger": trigger, "overrides": text})


def started_by_dag(dag_run: Any, trigger: Any) -> bool:
    """Return True if a DAG has started a run by itself: both sides have to say so.

    Args:
        dag_run: the run. Its user has to be that of the connection, which DAGs start runs as.
        trigger: what its conf says has started it; anybody can write that.
    """
    if not isinstance(trigger, dict):
        return False
    dag_id, run_id, task_id = (str(trigger.get(name)) for name in ("dag_id", "run_id", "task_id"))
    try:
        api = AirflowApi()
    except UserError:
        # Without the connection no DAG starts anything.
        return False
    if dag_run.triggering_user_name != api.login:
        return False
    started = api.xcom(dag_id, run_id, task_id, _STARTS)
    return bool(started == f"{dag_run.dag_id}/{dag_run.run_id}")


def leave_note(context: Any, text: str, report: str | None = None) -> None:
    """Say what the run at work did: in its note, and in the store for its tab.

    Args:
        report: URI of the report that they rest on.
    """
    from tuneline.governance.retraining.outcome import write_outcome

    print(text)
    run = context["dag_run"]
    # The log has it; a note is not worth a failed night.
    try:
        write_outcome(open_store(store_of("the workers")), run.dag_id, run.run_id, text, report)
    except (UserError, RetryableError) as error:
        _log.warning("the tab has no text: %s", error)
    note_run(context, text)


def note_run(context: Any, text: str) -> None:
    """Say something in the note of the run at work, if the API can be asked."""
    run = context["dag_run"]
    try:
        AirflowApi().note(run.dag_id, run.run_id, text)
    except (UserError, RetryableError) as error:
        _log.warning("no note on the run: %s", error)
