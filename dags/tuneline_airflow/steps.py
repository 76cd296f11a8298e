"""A step together with the check that follows it, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from airflow.sdk import chain

from tuneline_airflow.checks import audit_check, check_task, gate_task
from tuneline_airflow.pods import helper_pod, item_pod
from tuneline_airflow.training_job import TrainingPods


@dataclass(frozen=True)
class Step:
    """The first and the last task of a step: its pod and its check."""

    first: Any
    last: Any


def item(item_id: str, **kwargs: Any) -> Step:
    """An item's pod and its check."""
    return _step(item_pod(item_id, **kwargs), check_task(item_id))


def data_item(item_id: str, **kwargs: Any) -> Step:
    """A data item's pod and its gate."""
    return _step(item_pod(item_id, **kwargs), gate_task(item_id))


def audit(task_id: str, action: str, item_ids: Sequence[str]) -> Step:
    """A helper's pod that looks at items again, and the check of these items."""
    return _step(helper_pod(task_id, action), audit_check(task_id, item_ids))


def helper(task_id: str, action: str, **kwargs: Any) -> Step:
    """A helper's pod; what it made is judged by items."""
    pod = helper_pod(task_id, action, **kwargs)
    return Step(pod, pod)


def training() -> Step:
    """The step `train`: a pod, or several that train together."""
    pods = TrainingPods(task_id="train", command=["tuneline", "run", "train"], gpus=True)
    return Step(pods, pods)


def in_order(*steps: Step | Sequence[Step]) -> None:
    """Let each step wait for the checks of those before it.

    Args:
        steps: steps, or lists of steps that do not wait for each other.
    """
    groups = [[step] if isinstance(step, Step) else list(step) for step in steps]
    for earlier, later in pairwise(groups):
        for step in earlier:
            step.last >> [following.first for following in later]


def _step(pod: Any, check: Any) -> Step:
    chain(pod, check)
    return Step(pod, check)
