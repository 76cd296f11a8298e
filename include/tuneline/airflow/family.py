"""The DAGs of each model, the form that starts a run, and the task that makes it."""

from __future__ import annotations

from importlib import import_module
from itertools import product
from typing import Any

import pendulum
from airflow.sdk import DAG, Asset, Param, get_current_context, get_parsing_context, task
from airflow.sdk.exceptions import AirflowFailException

from tuneline.airflow.connections import take_connections
from tuneline.airflow.failures import fail_plainly, worker_retry_policy
from tuneline.airflow.notify import announcers
from tuneline.airflow.rest import note_run, started_by_dag
from tuneline.artifacts.answers import too_few_approvers
from tuneline.artifacts.evaluation import ANSWER_HOLDOUT
from tuneline.config import Model, find_model, models
from tuneline.errors import UserError
from tuneline.launch import create_run, form_fields
from tuneline.run import Run
from tuneline.store import store_of

take_connections()

START = pendulum.datetime(2025, 1, 1, tz="UTC")

MAIN = "finetune_to_production"
NIGHTLY = "nightly_retraining"
LOGS = "production_logs"
DRIFT = "drift_watch"
ROLLBACK = "rollback"
# Each has a module of its name, which makes the DAG of a model.
KINDS = (MAIN, NIGHTLY, LOGS, DRIFT, ROLLBACK)

CURATED, DATASET, RELEASED = "curated_logs", "dataset", "released_model"
# The scheme of each asset's URI.
ASSETS = {CURATED: "curated", DATASET: "dataset", RELEASED: "release"}

# These steps follow a question to people, or pods that a run need not have. They run when that was
# skipped, but not when everything before them was skipped.
OPTIONAL_BEFORE = {
    "license_audit": "approve_license",
    "final_audit": "review_rows",
    "lora_selection": "sweep",
    "holdout_performance": ANSWER_HOLDOUT,
    "human_review": "review_pairs",
    "promote": "approve_release",
}


def dag_id(kind: str, model: Model) -> str:
    """Return the id of a model's DAG of a kind."""
    return kind + model.suffix


def make_dags() -> dict[str, DAG]:
    """Return the DAGs of each kind and model by id.

    A worker that parses the file for one task needs no other DAG than that of the task.
    """
    wanted = get_parsing_context().dag_id
    made = {}
    for kind, model in product(KINDS, models()):
        name = dag_id(kind, model)
        if wanted in (None, name):
            module = import_module(f"tuneline.airflow.{kind}")
            made[name] = _broken(name, model.problem) if model.problem else module.build(model)
    return made


def asset_of(model: Model, kind: str) -> Asset:
    """Return the asset that other DAGs follow: of a model's curated days, datasets or releases."""
    return Asset(name=f"{kind}{model.suffix}", uri=f"tuneline-{ASSETS[kind]}://{model.name}")


def settings_of(kind: str, model: Model, title: str, doc: str | None) -> dict[str, Any]:
    """Return the arguments that the DAGs of a family share."""
    return {
        "dag_id": dag_id(kind, model),
        "dag_display_name": f"{title}: {model.name}" if model.suffix else title,
        "doc_md": doc,
        "start_date": START,
        "catchup": False,
        "max_active_runs": 1,
        "default_args": {
            "owner": ", ".join(model.file.owners),
            "on_failure_callback": announcers("failure", model),
        },
        "tags": ["tuneline", "llm", *([model.name] if model.suffix else []), *model.file.tags],
        "access_control": model.file.access_control or None,
    }


def _broken(name: str, problem: str) -> DAG:
    with DAG(
        dag_id=name,
        dag_display_name=f"{name} (its model file is wrong)",
        description=problem,
        doc_md=f"### This model's file can't be used\n\n{problem}",
        schedule=None,
        start_date=START,
        catchup=False,
        tags=["tuneline", "broken"],
    ) as dag:

        @task
        def read_model_file() -> None:
            """Fail with the reason."""
            raise AirflowFailException(problem)

        read_model_file()
    return dag


def form(model: Model) -> dict[str, Param]:
    """Return the trigger form of a model, one `Param` for each field.

    Fields that its file answers show that answer; None in the others leaves its settings alone.
    """
    known = {"preset": model.file.preset}
    if isinstance(model.source, str):
        known["data"] = model.source
    params = {}
    for name, spec in form_fields().items():
        schema = {key: value for key, value in spec.items() if key != "default"}
        params[name] = Param(known.get(name, spec["default"]), **schema)
    return params


def store_uri() -> str:
    """Return the store of the workers; raise a UserError if none is set."""
    return store_of("the workers")


@task(retries=2, retry_policy=worker_retry_policy)
@fail_plainly()
def prepare_run(model_name: str) -> str:
    """Validate the form, create the run, record its starter, and return its URI."""
    from tuneline.airflow.preflight import check_surroundings
    from tuneline.data.sources.find_files import DatasetVersion
    from tuneline.governance.release.approvals import is_needed
    from tuneline.governance.retraining.nightly import note_tried
    from tuneline.training.resources.forecast import forecast

    context: Any = get_current_context()
    dag_run = context["dag_run"]
    # Keys of the conf that no Param declares arrive here too, and `create_run` refuses them.
    fields = {**dict(context["params"]), **(dag_run.conf or {})}
    trigger = fields.pop("trigger", None)
    automatic = started_by_dag(dag_run, trigger)
    if trigger is not None and not automatic:
        print("`trigger` is not taken from the conf: no run that it names has started this one")
    bundle = getattr(context["ti"], "bundle_instance", None)
    model = find_model(model_name)
    meta = {
        # A run that a DAG starts has the name of the API's user, who answers for nothing.
        "started_by": None if automatic else dag_run.triggering_user_name,
        "airflow": {
            "dag_id": dag_run.dag_id,
            "run_id": dag_run.run_id,
            "run_type": str(dag_run.run_type),
            "bundle_version": getattr(bundle, "version", None),
        },
        # What the model's file said; the form may have said otherwise.
        "model_settings": model.settings_digest if model.source else None,
        "approvers": [user.model_dump() for user in model.file.approvers],
        **({"trigger": trigger} if automatic else {}),
    }

    def check(run: Run) -> None:
        # Before it is written: whoever mends what is missing clears this task.
        check_surroundings(run.config, model.file.approvers)
        if is_needed(run) and (why := too_few_approvers(run)):
            raise UserError(why)

    run = create_run(fields, store_uri(), dag_run.run_id, meta, model=model, check=check)
    if automatic and model.source and (files := run.meta["dataset_version"]):
        # Only now: a run that is refused tries nothing, and the next night starts another one.
        version = DatasetVersion(files=files)
        note_tried(run.store, model_name, version, model.settings_digest, run.run_id)
    context["ti"].xcom_push(key="pods", value=run.config.pods_by_size())
    note = forecast(run.config, run.meta["base_parameters"]).sentence()
    print(note)
    note_run(context, note)
    context["ti"].xcom_push(key="deadlines", value=run.config.deadlines)
    return run.uri
