"""Tasks that read an item's evidence and stop the run if a critical item failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowFailException

from tuneline.errors import UserError
from tuneline_airflow.pods import RUN_URI
from tuneline_airflow.retries import worker_retry_policy

_SETTINGS: dict[str, Any] = {"retries": 2, "retry_policy": worker_retry_policy}


def check_task(item_id: str) -> Any:
    """Make `check_<item>`, which fails if a critical item failed or left no evidence."""
    return task(task_id=f"check_{item_id}", **_SETTINGS)(_check)(RUN_URI, [item_id])


def gate_task(item_id: str) -> Any:
    """Make `gate_<item>`, which derives the verdict from the audit table, then checks the item."""
    return task(task_id=f"gate_{item_id}", **_SETTINGS)(_gate)(RUN_URI, item_id)


def audit_check(helper: str, item_ids: Sequence[str]) -> Any:
    """Make `check_<helper>`, which checks items again after a step that measured them again."""
    return task(task_id=f"check_{helper}", **_SETTINGS)(_check)(RUN_URI, list(item_ids))


def _gate(run_uri: str, item_id: str) -> None:
    from tuneline.data.gates.run_gate import run_gate
    from tuneline.run import Run

    try:
        run_gate(Run.open(run_uri), item_id)
    except UserError as error:
        raise AirflowFailException(str(error)) from None
    _check(run_uri, [item_id])


def _check(run_uri: str, item_ids: Sequence[str]) -> None:
    from tuneline.verdicts import check_item

    stops = []
    for item_id in item_ids:
        try:
            status = check_item(run_uri, item_id)
        except UserError as error:
            raise AirflowFailException(str(error)) from None
        print(f"{item_id}: {status.verdict}: {status.summary} ({status.because})")
        if status.stops_release:
            stops.append(f"{item_id} (critical): {status.verdict}: {status.because}")
    if stops:
        raise AirflowFailException("; ".join(stops))
