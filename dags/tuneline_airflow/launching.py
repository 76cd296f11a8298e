"""The trigger form, and the task that turns it into a run."""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import Param, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from tuneline.errors import UserError
from tuneline.launch import create_run, form_fields
from tuneline_airflow.retries import worker_retry_policy


def form() -> dict[str, Param]:
    """Return the trigger form, one `Param` for each field."""
    params = {}
    for name, spec in form_fields().items():
        schema = {key: value for key, value in spec.items() if key != "default"}
        params[name] = Param(spec["default"], **schema)
    return params


@task(retries=2, retry_policy=worker_retry_policy)
def prepare_run() -> str:
    """Validate the form, create the run, record its starter, and return its URI."""
    from tuneline.human_answers import record_waivers

    context: Any = get_current_context()
    dag_run = context["dag_run"]
    # Keys of the conf that no Param declares arrive here too, and `create_run` refuses them.
    fields = {**dict(context["params"]), **(dag_run.conf or {})}
    started_by = dag_run.triggering_user_name
    bundle = getattr(context["ti"], "bundle_instance", None)
    meta = {
        "started_by": started_by,
        "airflow": {
            "dag_id": dag_run.dag_id,
            "run_id": dag_run.run_id,
            "run_type": str(dag_run.run_type),
            "bundle_version": getattr(bundle, "version", None),
        },
    }
    store = os.environ.get("TUNELINE_STORE")
    if not store:
        raise AirflowFailException("TUNELINE_STORE is not set for the workers (file:// or s3://)")
    try:
        run = create_run(fields, store, dag_run.run_id, meta)
        record_waivers(run, started_by)
    except UserError as error:
        raise AirflowFailException(str(error)) from None
    context["ti"].xcom_push(key="pods", value=run.config.pods.model_dump(mode="json"))
    context["ti"].xcom_push(key="deadlines", value=run.config.deadlines)
    return run.uri
