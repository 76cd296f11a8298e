"""Tasks that read an item's evidence and stop the run if a critical item failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from tuneline_airflow.pods import RUN_URI
from tuneline_airflow.retries import fail_plainly, worker_retry_policy

if TYPE_CHECKING:
    from airflow.sdk import Context


class EvidenceCheck(BaseOperator):
    """A task that fails if a critical item failed or left no evidence.

    Args:
        task_id: id of the task.
        item_ids: the items whose verdicts are read.
        gate: a data item whose verdict is derived from its audit table first.
    """

    template_fields = ("run_uri",)

    def __init__(
        self, *, task_id: str, item_ids: Sequence[str], gate: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(task_id=task_id, retries=2, retry_policy=worker_retry_policy, **kwargs)
        self.run_uri = RUN_URI
        self.item_ids = list(item_ids)
        self.gate = gate

    def execute(self, context: Context) -> None:
        """Derive the gate's verdict where there is one, and read those of the items."""
        with fail_plainly():
            if self.gate:
                _derive(self.run_uri, self.gate)
            stops = _stops(self.run_uri, self.item_ids)
        if stops:
            raise AirflowFailException("; ".join(stops))


def check_task(item_id: str) -> EvidenceCheck:
    """Make `check_<item>`, which fails if a critical item failed or left no evidence."""
    return EvidenceCheck(task_id=f"check_{item_id}", item_ids=[item_id])


def gate_task(item_id: str) -> EvidenceCheck:
    """Make `gate_<item>`, which derives the verdict from the audit table, then checks the item."""
    return EvidenceCheck(task_id=f"gate_{item_id}", item_ids=[item_id], gate=item_id)


def audit_check(helper: str, item_ids: Sequence[str]) -> EvidenceCheck:
    """Make `check_<helper>`, which checks items again after a step that measured them again."""
    return EvidenceCheck(task_id=f"check_{helper}", item_ids=item_ids)


def _derive(run_uri: str, item_id: str) -> None:
    from tuneline.data.gates.run_gate import run_gate
    from tuneline.run import Run

    run_gate(Run.open(run_uri), item_id)


def _stops(run_uri: str, item_ids: Sequence[str]) -> list[str]:
    """Return a sentence for each item that stops the release; print all verdicts."""
    from tuneline.verdicts import check_item

    stops = []
    for item_id in item_ids:
        status = check_item(run_uri, item_id)
        print(f"{item_id}: {status.verdict}: {status.summary} ({status.because})")
        if status.stops_release:
            stops.append(f"{item_id} (critical): {status.verdict}: {status.because}")
    return stops
