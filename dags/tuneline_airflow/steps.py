"""The tasks of a step: its pod, and the check that reads its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from airflow.sdk import TriggerRule, chain

from tuneline.catalogue import DATA_ORDER, Helper, Item, Phase
from tuneline_airflow.checks import audit_check, check_task, gate_task
from tuneline_airflow.pods import StepPod
from tuneline_airflow.tracking import SyncPod
from tuneline_airflow.training_job import TrainingPods

# Steps with a special kind of pod; the others have a `StepPod`.
_PODS: dict[str, type[StepPod]] = {"train": TrainingPods, "sync_tracking": SyncPod}
# The items that each audit measures again.
_AUDITED = {
    "final_audit": DATA_ORDER,
    "extraction_audit": ("pii_scrubbing",),
    "build_engine": ("license_audit",),
}


@dataclass(frozen=True)
class StepTasks:
    """The first and the last task of a step: its pod and its check, or the pod alone."""

    first: Any
    last: Any


def tasks_of(
    step: Item | Helper, engine: str, trigger_rule: TriggerRule | None = None
) -> StepTasks:
    """Make the tasks of a step in the current DAG and group.

    Every item is followed by its check, a data item by its gate. Items judge what helper steps
    make; only the audits, which measure items again, have a check.

    Args:
        step: step of the catalogue.
        engine: the engine that runs have unless they are given another one.
        trigger_rule: trigger rule of its pod, None for Airflow's default.
    """
    options: dict[str, Any] = {"trigger_rule": trigger_rule} if trigger_rule else {}
    if step.engine and engine == "llama_cpp":
        # It runs on a CPU, so that its steps need not wait for a GPU that others hold.
        options["pool"] = "default_pool"
    pod = pod_of(step, **options)
    check = _check_of(step)
    if check is None:
        return StepTasks(pod, pod)
    chain(pod, check)
    return StepTasks(pod, check)


def pod_of(step: Item | Helper, **kwargs: Any) -> StepPod:
    """Make the pod of a step; its task id is the step's id."""
    kind = _PODS.get(step.id, StepPod)
    return kind(task_id=step.id, command=step.command, gpus=step.gpu, engine=step.engine, **kwargs)


def _check_of(step: Item | Helper) -> Any | None:
    if step.id in _AUDITED:
        return audit_check(step.id, _AUDITED[step.id])
    if isinstance(step, Helper):
        return None
    return gate_task(step.id) if step.phase == Phase.DATA else check_task(step.id)
