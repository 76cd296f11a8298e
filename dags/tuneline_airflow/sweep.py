"""The sweep over LoRA ranks: a pod for each rank that a run asks to be tried."""

from __future__ import annotations

from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowFailException

from tuneline.errors import UserError
from tuneline_airflow.pods import GPU_POOL, RUN_URI, StepPod
from tuneline_airflow.retries import StepRetryPolicy, retry_delay, worker_retry_policy

# What the scheduler reads before a mapped task's operator exists, so that the operator's own
# defaults come too late.
_SCHEDULED: dict[str, Any] = {
    "pool": GPU_POOL,
    "retries": 2,
    "retry_delay": retry_delay(),
    "retry_policy": StepRetryPolicy(),
    "map_index_template": "r = {{ task.cmds[4] }}",
}


@task(retries=2, retry_policy=worker_retry_policy)
def ask_sweep(run_uri: str) -> list[list[str]]:
    """The command of each rank's pod; with none the sweep is skipped, without a pod."""
    from tuneline.run import Run
    from tuneline.serving.engines.adapter_limits import ranks_asked

    try:
        ranks = ranks_asked(Run.open(run_uri).config)
    except UserError as error:
        raise AirflowFailException(str(error)) from None
    return [["tuneline", "run", "sweep", "--r", str(r)] for r in ranks]


def try_ranks(commands: Any) -> Any:
    """One pod a command, in the pool of the GPU: trials share it, or the cores, one by one."""
    return StepPod.partial(task_id="sweep", gpus=True, **_SCHEDULED).expand(command=commands)


def sweep() -> tuple[Any, Any]:
    """The question which ranks to try, and the pods that try them."""
    asked = ask_sweep(RUN_URI)
    return asked, try_ranks(asked)
