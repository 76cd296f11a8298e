"""### Does production still look like the training data?

Runs whenever a day of logs was curated (or by *Trigger*), and compares the last days with the data
that the released model was trained on. The test is made for being asked every night: its false
alarms are limited for a whole year, not for each look.

On drift it

1. backfills `production_logs` over the drifted days, every request of them (dry run first; one
   backfill at a time),
2. counts the reviewed rows of these days and, if there are too few, asks people for more,
3. starts `finetune_to_production` with the reason, the days and the report: half of these rows are
   held out, and the new model has to be better on them than the released one,
4. waits with the next one until the cool-down is over: one drift starts one retraining.

The prompt of every logged request is compared, also of those that can't be trained on. Days with
few requests wait until they have enough together; a week without a comparison makes the run red.

The run's note says what was done and why. A day that a backfill curated starts no look.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Param, TriggerRule, get_current_context, task
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowFailException

from tuneline.airflow.failures import fail_plainly, worker_retry_policy
from tuneline.airflow.family import (
    CURATED,
    DRIFT,
    LOGS,
    MAIN,
    asset_of,
    dag_id,
    settings_of,
    store_uri,
)
from tuneline.airflow.notify import Announce
from tuneline.airflow.people import label_rows
from tuneline.airflow.pods import ModelPod
from tuneline.airflow.rest import leave_note, start_main
from tuneline.airflow.waiting import BackfillDays
from tuneline.config import Model, find_model, merge

# A backfill of many days on a small machine.
_BACKFILL_HOURS = 24
_UNTIL = Param(
    None,
    type=["string", "null"],
    format="date",
    title="Until",
    description="Last day that is compared (UTC); empty: the day just curated, or yesterday.",
)


def build(model: Model) -> DAG:
    """Make the DAG of a model."""
    with DAG(
        description="Compare production with the training data; backfill and retrain on drift",
        schedule=[asset_of(model, CURATED)],
        **settings_of(DRIFT, model, "Drift watch", __doc__),
    ) as dag:
        chosen = choose_days(model.name)
        compare = ModelPod(
            task_id="compare",
            model=model,
            action="drift",
            chosen="choose_days",
            options=["until", "config"],
        )
        decided = decide(model.name)
        backfill = BackfillDays(
            task_id="backfill",
            target=dag_id(LOGS, model),
            days="{{ ti.xcom_pull(task_ids='decide')['days'] }}",
            conf={"sample": 1.0},
            hours=_BACKFILL_HOURS,
        )
        asked = ask_for_labels(model.name)
        labels = label_rows(model)
        keep = ModelPod(
            task_id="keep_labels",
            model=model,
            action="answers",
            chosen="choose_days",
            arguments=["--name", "{{ run_id }}"],
        )
        retrain = start_retraining(model.name, dag_id(MAIN, model))
        chosen >> compare >> decided >> backfill >> asked >> labels >> keep >> retrain
        asked >> retrain
    dag.params = ParamsDict({"until": _UNTIL})
    return dag


@task.short_circuit(retries=3, retry_policy=worker_retry_policy)
@fail_plainly()
def choose_days(model_name: str) -> dict[str, Any] | None:
    """Choose the last day that is compared; None, which skips the rest, after a backfill."""
    from tuneline.governance.production.drift_look import last_day
    from tuneline.governance.production.settings import write_settings
    from tuneline.store import open_store

    context: Any = get_current_context()
    until, store = context["params"]["until"], open_store(store_uri())
    by_asset = (context["triggering_asset_events"] or {}).values()
    events = [event.extra for events in by_asset for event in events]
    if not until and events:
        scheduled = [date.fromisoformat(e["day"]) for e in events if not e.get("asked_by")]
        if not scheduled:
            leave_note(context, "no look: these days were curated by a backfill that drift started")
            return None
        until = last_day(store, model_name, scheduled).isoformat()
    until = until or (datetime.now(UTC).date() - timedelta(days=1)).isoformat()
    config = write_settings(store, find_model(model_name))
    return {"store": store_uri(), "until": until, "config": config}


@task(retries=3, retry_policy=worker_retry_policy)
@fail_plainly()
def decide(model_name: str) -> dict[str, str]:
    """Decide what the look starts, and say so in the run's note."""
    from tuneline.governance.production.drift_look import read_look
    from tuneline.governance.retraining import drift
    from tuneline.store import open_store

    context: Any = get_current_context()
    chosen = context["ti"].xcom_pull(task_ids="choose_days")
    model = find_model(model_name)
    settings = model.file.drift
    store = open_store(chosen["store"])
    look = read_look(store, model_name, date.fromisoformat(chosen["until"]))
    decision = drift.decide(
        look,
        drift.last_retraining(store, model_name),
        retrain=settings.retrain,
        window_days=settings.window_days,
        cool_down_days=settings.cool_down_days,
    )
    said = f"{decision.why} (report: {look.report})"
    leave_note(context, said, look.report)
    if look.drifted:
        Announce("drift", model, said).notify(context)
    elif look.verdict == "fail":
        raise AirflowFailException(said)
    return {"days": decision.days, "why": decision.why, "report": look.report}


@task.branch(retries=3, retry_policy=worker_retry_policy)
def ask_for_labels(model_name: str) -> str:
    """Ask people if too few rows of the drifted days are reviewed."""
    from tuneline.governance.production.reviewed import reviewed_rows
    from tuneline.store import open_store

    context: Any = get_current_context()
    first, last = _days(context)
    wanted = find_model(model_name).file.drift.min_reviewed
    rows = reviewed_rows(open_store(store_uri()), model_name).between(first, last)
    print(f"{len(rows)} rows of {first} to {last} are reviewed; a retraining needs {wanted}")
    return "start_retraining" if len(rows) >= wanted else "label_rows"


@task(
    trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
    retries=3,
    retry_policy=worker_retry_policy,
)
@fail_plainly()
def start_retraining(model_name: str, main: str) -> str | None:
    """Start the main DAG once for this drift; None, with a note, if too few rows are reviewed."""
    from tuneline.governance.production.drift_look import read_look
    from tuneline.governance.production.reviewed import reviewed_rows, write_reviewed
    from tuneline.governance.retraining.drift import note_retraining
    from tuneline.governance.retraining.nightly import over_budget
    from tuneline.launch import safe_run_id
    from tuneline.store import open_store

    context: Any = get_current_context()
    first, last = _days(context)
    model, store = find_model(model_name), open_store(store_uri())
    decided = context["ti"].xcom_pull(task_ids="decide")
    reviewed = reviewed_rows(store, model_name)
    rows, wanted = reviewed.between(first, last), model.file.drift.min_reviewed
    if len(rows) < wanted:
        leave_note(
            context,
            f"{decided['why']}. No retraining: only {len(rows)} of their rows have a label that "
            f"counts, {wanted} are needed; the next drifted day asks again",
        )
        return None
    today = datetime.now(UTC).date()
    broke = over_budget(store, model_name, today, model.file.budget.training_per_month)
    if broke:
        leave_note(context, f"{decided['why']}. No retraining: {broke}")
        Announce("budget", model, broke).notify(context)
        return None
    run_id = safe_run_id(f"drift__{last}", model.suffix)
    reason = f"drift of {first} to {last}: {decided['why']}"
    sources = write_reviewed(store, model, reviewed)
    start_main(
        context,
        main,
        run_id,
        reason,
        merge(sources.overrides, {"data": {"drifted_days": [str(first), str(last)]}}),
        first_day=str(first),
        last_day=str(last),
        report=decided["report"],
        reviewed_rows=len(rows),
    )
    note_retraining(store, model_name, read_look(store, model_name, last), run_id)
    leave_note(context, f"{decided['why']}. Started {main} {run_id} with {len(rows)} reviewed rows")
    return run_id


def _days(context: Any) -> tuple[date, date]:
    first, last = context["ti"].xcom_pull(task_ids="decide")["days"].split("..")
    return date.fromisoformat(first), date.fromisoformat(last)
