"""Decide what the end of a pod means for the run: only a critical item's failure stops it.

A pod that reached a verdict ends well, whatever the verdict is; the task that watched it reads it,
and fails with its reason. Such a task is not tried again, and clearing it runs its pod again.

A step that raises leaves its own evidence. One that was killed, or whose pod never started, can't;
then the task that watches the pod writes it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowFailException

from tuneline.catalogue import Item, Severity, get_step
from tuneline.errors import EXIT_USER, UserError, first_line
from tuneline.failures import ended_by_error
from tuneline.run import Run
from tuneline.step import leave_killed
from tuneline_airflow.pod_reasons import exit_code
from tuneline_airflow.retries import REASON, StepRetryPolicy, fail_plainly, patiently

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import BaseOperator, Context

_log = logging.getLogger(__name__)


@patiently
@fail_plainly()
def judge(run_uri: str, item_ids: Sequence[str]) -> None:
    """Print the verdicts of items; fail the task for good if one of them stops the release.

    Raises:
        AirflowFailException: if a critical item failed or left no evidence.
        RetryableError: if the store stays out of reach.
    """
    from tuneline.verdicts import check_item

    stops = []
    for item_id in item_ids:
        status = check_item(run_uri, item_id)
        print(f"{item_id}: {status.verdict}: {status.summary} ({status.because})")
        if status.stops_release:
            stops.append(f"{item_id} (critical): {status.verdict}: {status.because}")
    if stops:
        raise AirflowFailException("; ".join(stops))


def goes_on_without(task: BaseOperator, context: Context, error: Exception) -> bool:
    """Decide if the run goes on although the pod of a step failed; leave evidence if it does.

    It does after the last try of an item that isn't critical and that no later step needs. A step
    that ends with the user's error has not begun: the run itself is wrong, or made for another
    version.

    Args:
        task: the task of the step; its `remote_pod` is the pod as it was last seen.
        context: the task's context.
        error: what the pod's end raised.

    Returns:
        True if the item's evidence says that it failed, and why.

    Raises:
        TunelineError: if the evidence can't be stored.
    """
    item = _not_critical(task.task_id)
    pod = getattr(task, "remote_pod", None)
    if item is None or exit_code(pod) == EXIT_USER:
        return False
    tries_again = _tries_again(task, context, error)
    # A pod that never began says nothing about the next one.
    if tries_again and not (item.needed and exit_code(pod) is not None):
        return False
    ti = context["ti"]
    run_uri = str(ti.xcom_pull(task_ids="prepare_run"))
    identity = {
        "dag_id": ti.dag_id,
        "run_id": ti.run_id,
        "task_id": ti.task_id,
        "try_number": ti.try_number,
    }
    if not _left_by_this_try(run_uri, item.id, identity):
        leave_killed(run_uri, item.id, _reason(error, pod), identity)
    if tries_again or item.needed:
        # The last try of an item that later steps need reads that it was killed before.
        return False
    _log.error("%s failed; it is %s, so that the run goes on: %s", item.id, item.severity, error)
    return True


def _not_critical(step_id: str) -> Item | None:
    """Return the item of a task unless it is critical, None for any other task."""
    try:
        step = get_step(step_id)
    except UserError:
        return None
    return step if isinstance(step, Item) and step.severity != Severity.CRITICAL else None


def _tries_again(task: BaseOperator, context: Context, error: Exception) -> bool:
    ti = context["ti"]
    known: Any = {**context, "task": task}
    decision = StepRetryPolicy().evaluate(error, ti.try_number, ti.max_tries, known)
    return decision.action != RetryAction.FAIL and ti.try_number <= ti.max_tries


def _left_by_this_try(run_uri: str, item: str, identity: dict[str, Any]) -> bool:
    """Return True if the step itself has said why it failed."""
    evidence = Run.open(run_uri).find_evidence(item)
    return evidence is not None and ended_by_error(evidence) and evidence.airflow == identity


def _reason(error: Exception, pod: Any) -> str:
    """Return why the pod failed: its termination message, or how it ended."""
    if found := REASON.search(str(error)):
        return found.group(2)
    code = exit_code(pod)
    if code is None:
        return f"its pod failed: {first_line(error)}"
    return (
        f"its pod ended with exit code {code} and left no reason"
        f"{' (it was killed)' if code > 128 else ''}; the task's log has its last lines"
    )
