"""Addresses of the pages of a run in Airflow's UI."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey


class EvidenceLink(BaseOperatorLink):
    """A button on the task of a step that opens its evidence."""

    name = "Evidence"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address of the tab of the task."""
        return _of_task(ti_key.dag_id, ti_key.run_id, operator.task_id, ti_key.map_index)


def checklist_url(context: Context) -> str:
    """Return the address of the run's checklist tab."""
    ti = context["ti"]
    return f"{_of_run(ti.dag_id, ti.run_id)}/plugin/release-checklist"


def evidence_url(context: Context) -> str:
    """Return the address of the page of a task; that of a sheet shows a row after another."""
    ti = context["ti"]
    return _of_task(ti.dag_id, ti.run_id, ti.task_id, ti.map_index)


def _of_task(dag_id: str, run_id: str, task_id: str, map_index: int | None) -> str:
    mapped = "" if map_index in (None, -1) else f"/mapped/{map_index}"
    return f"{_of_run(dag_id, run_id)}/tasks/{quote(task_id, '')}{mapped}/plugin/evidence"


def _of_run(dag_id: str, run_id: str) -> str:
    base = str(conf.get("api", "base_url", fallback="") or "").rstrip("/")
    return f"{base}/dags/{quote(dag_id, '')}/runs/{quote(run_id, '')}"
