"""The Airflow plugin: a tab on the DAG run, behind Airflow's own permission check.

A FastAPI app of a plugin is open to everyone unless each route asks for a permission. The
imports for that are internal to Airflow; they are in this module alone, and a test checks that
they still exist.
"""

from __future__ import annotations

import json
from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import HTMLResponse

from tuneline.airflow.connections import take_connections
from tuneline.airflow.release_checklist.page import error_page, render, render_outcome
from tuneline.errors import TunelineError, UserError
from tuneline.governance.retraining.outcome import read_outcome
from tuneline.launch import safe_run_id
from tuneline.run import Run
from tuneline.store import NotThere, open_store, store_of
from tuneline.verdicts import checklist

take_connections()

app = FastAPI(title="Release checklist", docs_url=None, redoc_url=None, openapi_url=None)

_PROCESS = "the API server"

# Users who may not read the runs of a DAG may not read their evidence either.
_MAY_READ_RUN = [Depends(requires_access_dag("GET", DagAccessEntity.RUN))]


def open_run(dag_id: str, run_id: str) -> Run:
    """Open the run that belongs to a DAG run.

    The permission was asked for this DAG alone, and whoever may start a run of some DAG chooses its
    id. So the run itself has to say that it is the one of this DAG.

    Raises:
        UserError: if the store is not configured, or holds no run of this DAG run.
    """
    store = open_store(store_of(_PROCESS))
    _, mark, model = dag_id.partition("__")
    # Earlier versions left the model out of the id.
    for name in dict.fromkeys((safe_run_id(run_id, mark + model), safe_run_id(run_id))):
        try:
            meta = json.loads(store.get_bytes(f"runs/{name}/run.json"))
        except NotThere:
            continue
        made_by = meta.get("airflow") or {}
        if (made_by.get("dag_id"), made_by.get("run_id")) == (dag_id, run_id):
            return Run.open(store.uri_of(f"runs/{name}"))
    raise UserError(f"the store has no run of {run_id} of {dag_id}; its task prepare_run makes it")


def find_outcome(dag_id: str, run_id: str) -> str | None:
    """Return the page of a run of another DAG, None if the store has none."""
    store = open_store(store_of(_PROCESS))
    outcome = read_outcome(store, dag_id, run_id)
    if outcome is None:
        return None
    report, plot = None, None
    if outcome.report is not None:
        key = store.key_of(outcome.report)
        report = json.loads(store.get_bytes(key))
        picture = f"{key.rpartition('/')[0]}/drift.png"
        plot = store.get_bytes(picture) if store.exists(picture) else None
    return render_outcome(dag_id, outcome, report, plot)


# The handlers are plain functions, so that FastAPI reads the store in a worker thread.
@app.get("/page/{dag_id}/{run_id}", response_class=HTMLResponse, dependencies=_MAY_READ_RUN)
def page(dag_id: str, run_id: str) -> HTMLResponse:
    """Return the tab: 25 rows, each with its verdict, sentence, measurements and artifacts.

    A run of another DAG has what it did and why, with the report that it rests on.
    """
    try:
        outcome = find_outcome(dag_id, run_id)
        if outcome is not None:
            return HTMLResponse(outcome)
        run = open_run(dag_id, run_id)
        rows = checklist(run)
        evidence = {row.item: run.find_evidence(row.item) for row in rows}
    except TunelineError as error:
        return HTMLResponse(error_page(run_id, str(error)), status_code=_status(error))
    return HTMLResponse(render(run, rows, evidence))


@app.get("/api/{dag_id}/{run_id}", dependencies=_MAY_READ_RUN)
def as_json(dag_id: str, run_id: str) -> list[dict[str, Any]]:
    """Return the 25 rows as JSON, the same as `tuneline checklist --json`."""
    try:
        return [row.as_dict() for row in checklist(open_run(dag_id, run_id))]
    except TunelineError as error:
        raise HTTPException(status_code=_status(error), detail=str(error)) from None


def _status(error: TunelineError) -> int:
    return 404 if isinstance(error, UserError) else 503


class ReleaseChecklistPlugin(AirflowPlugin):
    """The plugin that registers the app and the tab."""

    name = "release_checklist"
    fastapi_apps = [  # noqa: RUF012 - the form that Airflow reads
        {"app": app, "url_prefix": "/release-checklist", "name": "Release checklist"}
    ]
    external_views = [  # noqa: RUF012 - the form that Airflow reads
        {
            "name": "Release checklist",
            "destination": "dag_run",
            "url_route": "release-checklist",
            "href": "release-checklist/page/{DAG_ID}/{RUN_ID}",
        }
    ]
