"""The Airflow plugin: a tab on the DAG run, behind Airflow's own permission check.

A FastAPI app of a plugin is open to everyone unless each route asks for a permission. The
imports for that are internal to Airflow; they are in this module alone, and a test checks that
they still exist.
"""

from __future__ import annotations

import json
import mimetypes
import os
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import HTMLResponse, Response

from tuneline.airflow.connections import take_connections
from tuneline.airflow.family import MAIN, OPTIONAL_BEFORE, ROLLBACK
from tuneline.artifacts.data import DATA_DOCS
from tuneline.catalogue import STEPS, get_step
from tuneline.config import models
from tuneline.errors import TunelineError, UserError
from tuneline.files import is_inner
from tuneline.governance.pages.checklist import (
    Links,
    content_of,
    data_uri,
    docs_key,
    gather,
    path_of,
    render,
    templates,
)
from tuneline.governance.pages.releases import render_releases, shelves, usage
from tuneline.governance.retraining.outcome import read_outcome
from tuneline.launch import safe_run_id
from tuneline.run import Run
from tuneline.store import NotThere, open_store, store_of
from tuneline.verdicts import checklist

take_connections()

app = FastAPI(title="Release checklist", docs_url=None, redoc_url=None, openapi_url=None)

_PROCESS = "the API server"
# Files up to this size are shown; larger ones are weights and tables.
_MOST_BYTES = 32 << 20
_SHOWN = {"image/svg+xml", "image/png", "application/json"}
# A question to people, or pods that a run need not have, and the step that follows them.
_BEFORE = {task: step for step, task in OPTIONAL_BEFORE.items()}
# Tasks that show people many rows or pairs.
_SHEETS = ("review_pairs", "review_rows", "label_rows")
_TEXTS = (".csv", ".jsonl", ".md", ".txt", ".yaml")
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
)
_FILE_POLICY = (
    "sandbox allow-same-origin; default-src 'none'; img-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)

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
        folder = key.rpartition("/")[0]
        # Earlier versions drew `drift.png`.
        drawn = (f"{folder}/{name}" for name in ("drift.svg", "drift.png"))
        picture = next(filter(store.exists, drawn), None)
        plot = data_uri(picture, store.get_bytes(picture)) if picture else None
    return say(dag_id, outcome.text, at=outcome.at, report=report, plot=plot)


def say(title: str, message: str, **more: Any) -> str:
    """Return a page with a message, and what is known of it."""
    values = {"title": title, "message": message, "report": {}, **more}
    return templates().get_template("outcome.html").render(values)


def answer(show: Callable[[str], str], title: str) -> HTMLResponse:
    """Return a page that `show` makes for a nonce, or what is wrong as one."""
    nonce, status = secrets.token_urlsafe(16), 200
    try:
        page = show(nonce)
    except TunelineError as error:
        page, status = say(title, str(error)), _status(error)
    policy = f"{_POLICY}; script-src 'nonce-{nonce}'"
    return HTMLResponse(page, status, {"Content-Security-Policy": policy, **_HEADERS})


# The handlers are plain functions, so that FastAPI reads the store in worker threads.
@app.get("/page/{dag_id}/{run_id}", response_class=HTMLResponse, dependencies=_MAY_READ_RUN)
def page(dag_id: str, run_id: str) -> HTMLResponse:
    """Return the tab: the 25 items, each with its verdict, numbers, plots and files.

    A run of another DAG has what it did and why, with the report that it rests on.
    """

    def show(nonce: str) -> str:
        outcome = find_outcome(dag_id, run_id)
        links = Links(dag_id, run_id, up="../../../")
        return outcome or render(gather(open_run(dag_id, run_id)), links, nonce=nonce)

    return answer(show, f"Release checklist: {run_id}")


@app.get("/item/{dag_id}/{run_id}/{task_id}/{index}", dependencies=_MAY_READ_RUN)
def item(dag_id: str, run_id: str, task_id: str, index: str) -> HTMLResponse:
    """Return the page at the one item whose task it is; of a sheet, its rows one after another."""
    name = task_id.rpartition(".")[2]

    def show(nonce: str) -> str:
        if name in _SHEETS:
            # The UI leaves the placeholder where a task is not mapped.
            at = int(index) if index.isdecimal() else -1
            place = path_of("dags", dag_id, "dagRuns", run_id, "taskInstances", task_id)
            values = {"place": f"/{place}/{at}/hitlDetails", "task_id": task_id, "nonce": nonce}
            return templates().get_template("sheet.html").render(up="../../../../../", **values)
        step = _BEFORE.get(name, name.removeprefix("gate_"))
        if step not in {one.id for one in STEPS}:
            if outcome := find_outcome(dag_id, run_id):
                return outcome
            raise UserError(f"{name} writes no evidence; the tab of the run shows all items")
        links = Links(dag_id, run_id, up="../../../../../")
        found = gather(open_run(dag_id, run_id), [step])
        return render(found, links, only=step, nonce=nonce)

    return answer(show, f"Evidence: {task_id}")


@app.get("/file/{dag_id}/{run_id}/{step}/{name:path}", dependencies=_MAY_READ_RUN)
def file(dag_id: str, run_id: str, step: str, name: str) -> Response:
    """Return a file that a step left, compared with its recorded hash; raw text is refused."""
    try:
        content = read_file(open_run(dag_id, run_id), step, name)
    except TunelineError as error:
        return HTMLResponse(say(name, str(error)), _status(error), _HEADERS)
    # No script of a file is run, and what is no page, picture or text is downloaded.
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    headers = {**_HEADERS, "Content-Security-Policy": _FILE_POLICY}
    if name.endswith(_TEXTS):
        kind = "text/plain; charset=utf-8"
    elif kind not in _SHOWN and not name.startswith(DATA_DOCS):
        headers["Content-Disposition"] = "attachment"
    return Response(content, media_type=kind, headers=headers)


def read_file(run: Run, step: str, name: str) -> bytes:
    """Return the content of an artifact of a step, or of its Data Docs.

    Raises:
        UserError: if the step left no such file, or it is not for reading here.
    """
    get_step(step)
    if not is_inner(name):
        raise UserError(f"{name!r} is not the name of a file")
    if name.startswith("quarantine/"):
        raise UserError(f"{name} of {step} may hold text of people; it is not shown here")
    if name.startswith(f"{DATA_DOCS}/"):
        return run.store.get_bytes(docs_key(run, step, name.removeprefix(f"{DATA_DOCS}/")))
    entry = run.find_entry(step)
    if entry is None:
        raise UserError(f"{step} has not been run in {run.uri}")
    if any(ref.name == name and ref.bytes > _MOST_BYTES for ref in entry.artifacts):
        raise UserError(f"{name} is too large to be shown; it is in the store: {run.uri}")
    return content_of(run, entry, name)


@app.get("/releases", response_class=HTMLResponse)
def releases(user: GetUserDep) -> HTMLResponse:
    """Return the page of all models whose runs the user may read."""
    suffixes = {model.name: model.suffix for model in models()}

    def dag_of(kind: str, name: str) -> str:
        return kind + suffixes.get(name, "")

    def may(method: Literal["GET", "POST", "PUT"], kind: str, name: str) -> bool:
        details = DagDetails(id=dag_of(kind, name))
        entity = None if method == "PUT" else DagAccessEntity.RUN
        return get_auth_manager().is_authorized_dag(
            method=method, access_entity=entity, details=details, user=user
        )

    def show(nonce: str) -> str:
        store = open_store(store_of(_PROCESS))
        found = shelves(store, partial(may, "GET", MAIN))
        names = [shelf.name for shelf in found]
        back = {n: dag_of(ROLLBACK, n) for n in names if may("POST", ROLLBACK, n)}
        # Names of keys are for those who run a model.
        spent = _usage() if any(may("PUT", MAIN, name) for name in names) else {}
        return render_releases(found, nonce=nonce, up="../", rollback=back, **spent)

    return answer(show, "Releases")


def _usage() -> dict[str, Any]:
    ledger = os.environ.get("TUNELINE_LEDGER")
    if not ledger:
        why = "Cost is shown where TUNELINE_LEDGER of the API server names the gateway's ledger."
        return {"unknown_usage": why}
    try:
        return {"usage": usage(ledger)}
    except TunelineError as error:
        return {"unknown_usage": str(error)}


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
        },
        {
            "name": "Evidence",
            "destination": "task_instance",
            "url_route": "evidence",
            "href": "release-checklist/item/{DAG_ID}/{RUN_ID}/{TASK_ID}/{MAP_INDEX}",
        },
        {
            "name": "Releases",
            "destination": "nav",
            "url_route": "releases",
            "href": "release-checklist/releases",
        },
    ]
