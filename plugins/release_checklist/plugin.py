"""The Airflow plugin: a tab on the DAG run, behind Airflow's own permission check.

A FastAPI app of a plugin is open to everyone unless each route asks for a permission.
The imports that do so are internal to Airflow; they stand here alone and a test holds
them to it.
"""

from __future__ import annotations

import os
from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import HTMLResponse

from release_checklist.page import error_page, render
from tuneline.errors import TunelineError, UserError
from tuneline.launch import safe_run_id
from tuneline.run import Run
from tuneline.verdicts import checklist

app = FastAPI(title="Release checklist", docs_url=None, redoc_url=None, openapi_url=None)

# Whoever may not read a DAG's runs may not read their evidence.
_MAY_READ_RUN = [Depends(requires_access_dag("GET", DagAccessEntity.RUN))]


def open_run(run_id: str) -> Run:
    """The run that belongs to a DAG run.

    Raises:
        UserError: the store is not configured, or the run was not created yet.
    """
    store = os.environ.get("TUNELINE_STORE")
    if not store:
        raise UserError("TUNELINE_STORE is not set for the API server; it names the store")
    return Run.open(f"{store.rstrip('/')}/runs/{safe_run_id(run_id)}")


# The handlers are plain functions, so that FastAPI reads the store in a worker thread.
@app.get("/page/{dag_id}/{run_id}", response_class=HTMLResponse, dependencies=_MAY_READ_RUN)
def page(dag_id: str, run_id: str) -> HTMLResponse:
    """The tab: 25 rows, each with its verdict, sentence, measurements and artifacts."""
    try:
        run = open_run(run_id)
        rows = checklist(run)
        evidence = {row.item: run.find_evidence(row.item) for row in rows}
    except TunelineError as error:
        return HTMLResponse(error_page(run_id, str(error)))
    return HTMLResponse(render(run, rows, evidence))


@app.get("/api/{dag_id}/{run_id}", dependencies=_MAY_READ_RUN)
def as_json(dag_id: str, run_id: str) -> list[dict[str, Any]]:
    """The 25 rows as JSON, the same as `tuneline checklist --json`."""
    try:
        return [row.as_dict() for row in checklist(open_run(run_id))]
    except TunelineError as error:
        raise HTTPException(status_code=404, detail=str(error)) from None


class ReleaseChecklistPlugin(AirflowPlugin):
    """Registers the app and the tab."""

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
