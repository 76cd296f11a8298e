"""The sweep over LoRA ranks: a pod for each rank that a run asks to be tried."""

from __future__ import annotations

from typing import Any

from airflow.sdk import task

from tuneline_airflow.pods import GPU_POOL, RUN_URI, StepPod
from tuneline_airflow.retries import (
    StepRetryPolicy,
    fail_plainly,
    retry_delay,
    worker_retry_policy,
)

# The scheduler reads these before a mapped task's operator exists, when the operator's own
# defaults are not there yet.
_SCHEDULED: dict[str, Any] = {
    "pool": GPU_POOL,
    "retries": 2,
    "retry_delay": retry_delay(),
    "retry_policy": StepRetryPolicy(),
    "map_index_template": "r = {{ task.cmds[4] }}",
}


@task(retries=2, retry_policy=worker_retry_policy)
@fail_plainly()
def ask_sweep(run_uri: str) -> list[list[str]]:
    """Return the command of each rank's pod; without any, the sweep is skipped."""
    from tuneline.run import Run
    from tuneline.serving.engines.limits import ranks_asked

    ranks = ranks_asked(Run.open(run_uri))
    return [["tuneline", "run", "sweep", "--r", str(r)] for r in ranks]


def try_ranks(commands: Any) -> Any:
    """Make one pod for each command, in the GPU's pool, so that trials run one by one."""
    return StepPod.partial(task_id="sweep", gpus=True, **_SCHEDULED).expand(command=commands)


def sweep() -> tuple[Any, Any]:
    """Make the task that lists the ranks to try and the pods that try them."""
    asked = ask_sweep(RUN_URI)
    return asked, try_ranks(asked)
