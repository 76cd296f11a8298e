"""What a run of `production_logs`, `drift_watch` or `nightly_retraining` did, and why.

One small file for each run, `outcomes/<dag id>/<run id>.json`; the tab in Airflow shows it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tuneline.launch import safe_run_id
from tuneline.run import now
from tuneline.store import Store


class Outcome(BaseModel):
    """What a run did."""

    model_config = ConfigDict(frozen=True)

    text: str
    at: str
    report: str | None = None  # that it rests on
    dag_id: str | None = None  # None if an earlier version wrote it
    run_id: str | None = None


def write_outcome(
    store: Store, dag_id: str, run_id: str, text: str, report: str | None = None
) -> None:
    """Write what a run did; a report that is known already stays."""
    known = read_outcome(store, dag_id, run_id)
    made = Outcome(
        text=text,
        at=now(),
        report=report or (known.report if known else None),
        dag_id=dag_id,
        run_id=run_id,
    )
    store.put_bytes(_key(dag_id, run_id), made.model_dump_json(indent=1).encode())


def read_outcome(store: Store, dag_id: str, run_id: str) -> Outcome | None:
    """Return what a run did, None if it has not said so.

    Ids that differ may have one key, so that the file says whose it is.
    """
    key = _key(dag_id, run_id)
    if not store.exists(key):
        return None
    found = Outcome.model_validate_json(store.get_bytes(key))
    known = (found.dag_id or dag_id, found.run_id or run_id)
    return found if known == (dag_id, run_id) else None


def _key(dag_id: str, run_id: str) -> str:
    return f"outcomes/{safe_run_id(dag_id)}/{safe_run_id(run_id)}.json"
