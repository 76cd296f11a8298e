"""The tasks of a step: its pod, which judges what it left, and for data items the gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, TriggerRule

from tuneline.airflow.failures import RUN_URI, fail_plainly, judge, worker_retry_policy
from tuneline.airflow.people import DealingPod, PairsPod, RowsPod
from tuneline.airflow.pods import GPU_POOL, StepPod
from tuneline.airflow.training import SyncPod, TrainingPods
from tuneline.artifacts.evaluation import ANSWER_HOLDOUT
from tuneline.catalogue import DATA_ORDER, Helper, Item, Size

if TYPE_CHECKING:
    from airflow.sdk import Context

    from tuneline.run import Run


class ShardsPod(DealingPod):
    """The pod that builds the engine, whose task deals out the shards of the hold-out."""

    def deal(self, run: Run) -> list[Any]:
        """Return the command of each pod; without shards, the item asks by itself."""
        shards = run.config.evaluation.shards if run.config.evaluation.shards > 1 else 0
        return [["tuneline", "run", "answer", "--shard", str(shard)] for shard in range(shards)]


def answer_holdout(dealt: Any, engine: str) -> Any:
    """Make a pod for each shard that a `ShardsPod` has dealt out."""
    pool, label = "default_pool" if engine == "llama_cpp" else GPU_POOL, "shard {{ task.cmds[4] }}"
    return StepPod.mapped(ANSWER_HOLDOUT, dealt, size=Size.ENGINE, pool=pool, label=label)


# Steps with a special kind of pod; the others have a `StepPod`.
_PODS: dict[str, type[StepPod]] = {
    "train": TrainingPods,
    "sync_tracking": SyncPod,
    "pii_scrubbing": RowsPod,
    "prepare_review": PairsPod,
    "build_engine": ShardsPod,
}
# The items that each audit measures again.
_AUDITED = {
    "final_audit": DATA_ORDER,
    "extraction_audit": ("pii_scrubbing",),
    "build_engine": ("license_audit",),
}


@dataclass(frozen=True)
class StepTasks:
    """The first and the last task of a step: its pod and its gate, or the pod alone."""

    first: Any
    last: Any


class Gate(BaseOperator):
    """The task `gate_<item>`: derive the verdict of a data item from its audit table again."""

    template_fields = ("run_uri",)

    def __init__(self, *, item_id: str, **kwargs: Any) -> None:
        options = {"task_id": f"gate_{item_id}", "retries": 2, "retry_policy": worker_retry_policy}
        super().__init__(**{**options, **kwargs})
        self.run_uri = RUN_URI
        self.item_id = item_id

    @fail_plainly()
    def execute(self, context: Context) -> None:
        """Derive the verdict, and stop the run if a critical item failed."""
        from tuneline.data.gates.run_gate import run_gate
        from tuneline.run import Run

        run_gate(Run.open(self.run_uri), self.item_id)
        judge(self.run_uri, [self.item_id])


def tasks_of(
    step: Item | Helper, engine: str, trigger_rule: TriggerRule | None = None
) -> StepTasks:
    """Make the tasks of a step in the current DAG and group; `engine` is the default of runs."""
    options: dict[str, Any] = {"trigger_rule": trigger_rule} if trigger_rule else {}
    if step.engine and engine == "llama_cpp":
        # It runs on a CPU, so that its steps need not wait for a GPU that others hold.
        options["pool"] = "default_pool"
    pod = pod_of(step, **options)
    if step.id not in DATA_ORDER:
        return StepTasks(pod, pod)
    gate = Gate(item_id=step.id)
    pod >> gate
    return StepTasks(pod, gate)


def pod_of(step: Item | Helper, **kwargs: Any) -> StepPod:
    """Make the pod of a step; its task id is the step's id.

    It judges its item, and an audit the items that it measures again. A data item is judged by its
    gate, other helper steps by the items after them.
    """
    own = [step.id] if isinstance(step, Item) and step.id not in DATA_ORDER else []
    return _PODS.get(step.id, StepPod)(
        task_id=step.id,
        command=step.command,
        size=step.size,
        judged=_AUDITED.get(step.id, own),
        **kwargs,
    )
