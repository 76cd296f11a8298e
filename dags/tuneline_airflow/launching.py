"""The trigger form, and the task that turns it into a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from airflow.sdk import Param, get_current_context, task

from tuneline.config import Model, find_model
from tuneline.launch import create_run, form_fields
from tuneline.store import store_of
from tuneline_airflow.retries import fail_plainly, worker_retry_policy


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
    """Return the store of the workers.

    Raises:
        UserError: if none is set.
    """
    return store_of("the workers")


def conf_of(
    reason: str, trigger: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the conf of a run that a DAG starts, in the fields of the form.

    Args:
        reason: why it is started.
        trigger: what started it; kept in `run.json`.
        overrides: settings above the model's file.
    """
    # The form takes YAML, of which JSON is a part.
    text = json.dumps(overrides, ensure_ascii=False) if overrides else ""
    return {"reason": reason, "trigger": dict(trigger), "overrides": text}


@task(retries=2, retry_policy=worker_retry_policy)
@fail_plainly()
def prepare_run(model_name: str) -> str:
    """Validate the form, create the run, record its starter, and return its URI."""
    from tuneline.data.sources.dataset_version import DatasetVersion
    from tuneline.governance.retraining.nightly import note_tried
    from tuneline.human_answers import record_waivers

    context: Any = get_current_context()
    dag_run = context["dag_run"]
    # Keys of the conf that no Param declares arrive here too, and `create_run` refuses them.
    fields = {**dict(context["params"]), **(dag_run.conf or {})}
    # A run that a DAG starts bears the name of the API's user, who stands for no waiver.
    started_by = None if fields.get("trigger") else dag_run.triggering_user_name
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
    model = find_model(model_name)
    meta["approvers"] = list(model.file.approvers)
    run = create_run(fields, store_uri(), dag_run.run_id, meta, model=model)
    record_waivers(run, started_by)
    if fields.get("trigger") and (files := run.meta["dataset_version"]):
        # Only now: a run that is refused tries nothing, and the next night starts another one.
        note_tried(run.store, model_name, DatasetVersion(files=files), run.run_id)
    context["ti"].xcom_push(key="pods", value=run.config.pods.model_dump(mode="json"))
    engine_pods = run.config.engine_pods.model_dump(mode="json")
    context["ti"].xcom_push(key="engine_pods", value=engine_pods)
    context["ti"].xcom_push(key="deadlines", value=run.config.deadlines)
    return run.uri
