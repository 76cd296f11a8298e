"""### Retrain at night, if there is something new to learn

Compares the model's data (its source files and the reviewed rows of its production logs) with
those of the released model. Without a change the run ends there, and its note says so. With one it
starts `finetune_to_production`, waits for its end and notes whether it was released.

The night does not wait for the canary of what it has released, which may take a day: its note
says how it stood. No further night trains before that canary is decided.

The new model has to pass the whole checklist. A night of a model whose profile is `laptop` moves
its `staging.json` and never what is in production. In it, hold-out performance compares it with the
released model row by row: if it is worse by more than the stated margin, the old one stays.
What was forgotten is counted from the first base model on, however many nights lie between.

*Trigger* it with `force` to train although nothing changed. Data and settings that were judged and
gave no release are not tried again every night; a run that died before its verdict is.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, Param, get_current_context, task
from airflow.sdk.definitions.param import ParamsDict

from tuneline.airflow.failures import fail_plainly, worker_retry_policy
from tuneline.airflow.family import MAIN, NIGHTLY, dag_id, settings_of, store_uri
from tuneline.airflow.notify import Announce
from tuneline.airflow.rest import connected_api, leave_note, start_main
from tuneline.airflow.waiting import RunEnds
from tuneline.config import Model, find_model, merge


def build(model: Model) -> DAG:
    """Make the DAG of a model."""
    nightly, main = model.file.nightly, dag_id(MAIN, model)
    with DAG(
        description="Retrain when the data changed since the released model",
        schedule=CronTriggerTimetable(nightly.schedule, timezone="UTC")
        if nightly.schedule
        else None,
        **settings_of(NIGHTLY, model, "Nightly retraining", __doc__),
    ) as dag:
        decided = compare_data(model.name)
        started = start_run(model.name, main)
        ended = RunEnds(
            task_id="await_run",
            target=main,
            run_id="{{ ti.xcom_pull(task_ids='start_run') }}",
            hours=nightly.hours,
            last="canary",
        )
        decided >> started >> ended >> say_outcome(model.name, main)
    dag.params = ParamsDict(
        {
            "force": Param(
                False,
                type="boolean",
                title="Force",
                description="Train although the data are those of the released model.",
            )
        }
    )
    return dag


@task.short_circuit(retries=3, retry_policy=worker_retry_policy)
@fail_plainly()
def compare_data(model_name: str) -> dict[str, Any] | None:
    """Compare tonight's data with the released model's; None, which skips the rest, if equal."""
    from tuneline.artifacts.releases import pointer_of
    from tuneline.data.sources.find_files import dataset_version
    from tuneline.governance.production.reviewed import reviewed_rows, write_reviewed
    from tuneline.governance.retraining import nightly
    from tuneline.store import open_store

    context: Any = get_current_context()
    model, store = find_model(model_name), open_store(store_uri())
    sources = write_reviewed(store, model, reviewed_rows(store, model_name))
    today = datetime.now(UTC).date()
    broke = nightly.over_budget(store, model_name, today, model.file.budget.training_per_month)
    version = dataset_version(sources.addresses)
    place = (store, model_name, version, model.settings_digest)
    night = nightly.decide(
        *place,
        pointer=pointer_of(model.profile),
        force=context["params"]["force"],
        over_budget=broke,
        under_way=lambda run_id: connected_api().has_not_ended(dag_id(MAIN, model), run_id),
    )
    leave_note(context, night.why)
    if broke and broke in night.why:
        Announce("budget", model, night.why).notify(context)
    if not night.train:
        return None
    warm = {"training": {"warm_start": "released"}} if model.file.nightly.warm_start else {}
    return {"why": night.why, "overrides": merge(sources.overrides, warm)}


@task(retries=3, retry_policy=worker_retry_policy)
@fail_plainly()
def start_run(model_name: str, main: str) -> str:
    """Start the main DAG once for this night, and return the id of its run."""
    from tuneline.launch import safe_run_id

    context: Any = get_current_context()
    decided = context["ti"].xcom_pull(task_ids="compare_data")
    run, suffix = context["dag_run"], find_model(model_name).suffix
    run_id = safe_run_id(f"nightly__{run.run_after:%Y-%m-%dT%H-%M-%S}", suffix)
    reason = f"nightly retraining: {decided['why']}"
    start_main(context, main, run_id, reason, decided["overrides"])
    leave_note(context, f"{decided['why']}. Started {main} {run_id}")
    return run_id


@task(retries=3, retry_policy=worker_retry_policy)
def say_outcome(model_name: str, main: str) -> None:
    """Note whether the night's model was released, or why the old one stays."""
    from tuneline.artifacts.releases import pointer_of, read_release
    from tuneline.governance.release.canary import canary_state
    from tuneline.governance.retraining.nightly import why_kept
    from tuneline.store import open_store

    context: Any = get_current_context()
    run_id = context["ti"].xcom_pull(task_ids="start_run")
    store, pointer = open_store(store_uri()), pointer_of(find_model(model_name).profile)
    release = read_release(store, model_name, pointer)
    if release is not None and release.version == run_id:
        told = ""
        if connected_api().task_state(main, run_id, "canary") not in (None, "success", "skipped"):
            told = f"; {canary_state(store, model_name, run_id).told}"
        leave_note(context, f"{model_name} {run_id} is released to {pointer}{told}")
        return
    stays = f"{release.version} stays" if release else f"nothing is released to {pointer}"
    why, judged = why_kept(store, run_id)
    again = "" if judged else "; the next night tries again"
    leave_note(context, f"{main} {run_id} was not released; {stays}: {why}{again}")
