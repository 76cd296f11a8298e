"""Calls of tasks to Airflow's API: runs that they start, and notes on their own.

Tasks have no access to Airflow's database. The connection `tuneline_api` (type http) says where
the API is and as whom to log in, or has a bearer token as its password and no login; the user needs
the rights to trigger runs and to backfill.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException

from tuneline.errors import RetryableError, UserError
from tuneline.machine.airflow_api import AirflowApi
from tuneline.store import open_store, store_of

CONNECTION = "tuneline_api"
# The XCom in which a task names the run that it starts.
_STARTS = "starts"

_log = logging.getLogger(__name__)


def connected_api() -> AirflowApi:
    """Return a client that logs in with the connection `tuneline_api`.

    Raises:
        UserError: if there is no such connection.
    """
    try:
        connection = BaseHook.get_connection(CONNECTION)
    except (AirflowNotFoundException, AirflowException):
        raise UserError(
            f"there is no Airflow connection {CONNECTION!r}; add one of type http whose host "
            "is the address of the API server (http://host:8080), with login and password of "
            "a user who may trigger runs and backfills, or that user's token as password alone"
        ) from None
    host = connection.host or ""
    scheme = "" if "://" in host else f"{connection.schema or 'http'}://"
    port = f":{connection.port}" if connection.port else ""
    return AirflowApi(
        f"{scheme}{host}{port}",
        connection.login,
        lambda: connection.password,
        whose=f"the connection {CONNECTION!r}",
    )


def start_main(
    context: Any, main: str, run_id: str, reason: str, overrides: Mapping[str, Any], **more: Any
) -> None:
    """Start a run of the main DAG, once, and keep `more` of why it was started in `run.json`.

    Raises:
        UserError: if the main DAG is paused, so that the run would wait for ever.
    """
    ti, api = context["ti"], connected_api()
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

    The user of the run has to be that of the connection, which DAGs start runs as. `trigger` is
    what its conf says has started it; anybody can write that.

    Raises:
        RetryableError: if the task that may have started it is tried again: Airflow has taken back
            what its first try said.
    """
    if not isinstance(trigger, dict):
        return False
    dag_id, run_id, task_id = (str(trigger.get(name)) for name in ("dag_id", "run_id", "task_id"))
    try:
        api = connected_api()
    except UserError:
        # Without the connection no DAG starts anything.
        return False
    if dag_run.triggering_user_name != api.user:
        return False
    started = api.xcom(dag_id, run_id, task_id, _STARTS)
    if started is None and api.task_state(dag_id, run_id, task_id) == "running":
        raise RetryableError(
            f"{task_id} of {dag_id} {run_id} is tried again and does not say yet what it starts"
        )
    return bool(started == f"{dag_run.dag_id}/{dag_run.run_id}")


def leave_note(context: Any, text: str, report: str | None = None) -> None:
    """Say what the run did: in its note and, with the report that it rests on, in its tab."""
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
        connected_api().note(run.dag_id, run.run_id, text)
    except (UserError, RetryableError) as error:
        _log.warning("no note on the run: %s", error)
