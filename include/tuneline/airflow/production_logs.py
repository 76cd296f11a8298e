"""### A day of production logs, curated

Reads the requests that the gateway logged on one day (UTC), removes personal data and secrets with
the full scrubber, removes near-duplicates, draws rows for review, and writes the curated day with
its evidence: requests in = rows kept + rows rejected, each with its reason. Great Expectations
checks the day before it takes the place of the one before; only a day that adds up is announced to
`drift_watch`. The run is red if the log has fewer requests than the gateway's usage ledger.

**A run for a day replaces that day whole**, so any day can be run again: *Trigger* with `day`, a
backfill from the UI, or `airflow backfill create --dag-id production_logs --from-date … --to-date …
--reprocess-behavior completed`. `drift_watch` starts such backfills by itself.

Curated rows become training data only after review: `tuneline logs review` writes the open rows,
`tuneline logs label` takes the labels, and so does the folder `labels/<model>/` of the store.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, CronDataIntervalTimetable, Metadata, Param, get_current_context, task
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowFailException

from tuneline.airflow.failures import fail_plainly, worker_retry_policy
from tuneline.airflow.family import CURATED, LOGS, asset_of, settings_of, store_uri
from tuneline.airflow.pods import ModelPod
from tuneline.airflow.rest import leave_note
from tuneline.config import Model, find_model
from tuneline.evidence import Verdict


def build(model: Model) -> DAG:
    """Make the DAG of a model."""
    cron = model.file.logs.schedule
    with DAG(
        description="Collect, scrub and deduplicate a day of production requests",
        schedule=CronDataIntervalTimetable(cron, timezone="UTC") if cron else None,
        **settings_of(LOGS, model, "Production logs", __doc__),
    ) as dag:
        chosen = choose_day(model.name)
        curate = ModelPod(
            task_id="curate",
            model=model,
            action="curate",
            chosen="choose_day",
            options=["day", "sample", "config"],
        )
        checked = check_day.override(outlets=[asset_of(model, CURATED)])(model.name)
        chosen >> curate >> checked >> judge_day(model.name)
    dag.params = ParamsDict(_form())
    return dag


def _form() -> dict[str, Param]:
    return {
        "day": Param(
            None,
            type=["string", "null"],
            format="date",
            title="Day",
            description="Day (UTC); empty: that of a scheduled or backfilled run, else yesterday.",
        ),
        "sample": Param(
            None,
            type=["number", "null"],
            exclusiveMinimum=0,
            maximum=1,
            title="Review sample",
            description="Share of the rows that is proposed for review, 1 for all; empty: as "
            "the model's file says.",
        ),
        "asked_by": Param(
            None,
            type=["string", "null"],
            title="Asked by",
            description="Filled in by drift_watch: its run.",
        ),
    }


@task(retries=2, retry_policy=worker_retry_policy)
@fail_plainly()
def choose_day(model_name: str) -> dict[str, Any]:
    """Choose the day, and write the settings of the model where the pod reads them."""
    from tuneline.governance.production.settings import write_settings
    from tuneline.store import open_store

    context: Any = get_current_context()
    run, params = context["dag_run"], context["params"]
    interval = run.data_interval_start
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    day = params["day"] or (interval.date() if interval else yesterday).isoformat()
    config = write_settings(open_store(store_uri()), find_model(model_name))
    given = {name: params[name] for name in ("sample", "asked_by")}
    return {"store": store_uri(), "day": day, "config": config, **given}


@task(retries=2, retry_policy=worker_retry_policy)
def check_day(model_name: str) -> Any:
    """Read the evidence of the day, and announce the day as curated."""
    context: Any = get_current_context()
    chosen, evidence = _curated(context, model_name)
    leave_note(context, f"{evidence.day}: {evidence.summary}")
    asset = asset_of(find_model(model_name), CURATED)
    yield Metadata(asset, {"day": evidence.day, "asked_by": chosen["asked_by"]})


@task(retries=2, retry_policy=worker_retry_policy)
@fail_plainly()
def judge_day(model_name: str) -> None:
    """Fail if the day's verdict says so; what was logged of it is watched all the same."""
    chosen, evidence = _curated(get_current_context(), model_name)
    # The run that curated the day first was red; a backfill goes on with what there is.
    if evidence.verdict == Verdict.FAIL and not chosen["asked_by"]:
        raise AirflowFailException(f"{evidence.day}: {evidence.summary}")


def _curated(context: Any, model_name: str) -> tuple[dict[str, Any], Any]:
    """Return what was chosen, and the evidence of the day."""
    from tuneline.governance.production.curated_days import open_day
    from tuneline.store import open_store

    chosen = context["ti"].xcom_pull(task_ids="choose_day")
    day = date.fromisoformat(chosen["day"])
    curated = open_day(open_store(chosen["store"]), model_name, day)
    if curated is None:
        raise AirflowFailException(f"{day} was not curated; see the log of `curate`")
    return chosen, curated.evidence
