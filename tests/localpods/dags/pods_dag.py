"""A DAG of pods for the test of the whole: one that is waited for, deferred ones, and their sum."""

from __future__ import annotations

import json
import os

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG, task

with DAG("pods") as dag:

    def pod(task_id: str, script: str, *, deferrable: bool) -> KubernetesPodOperator:
        return KubernetesPodOperator(
            task_id=task_id,
            image=os.environ.get("IMAGE", "none"),
            cmds=["bash", "-c", script],
            do_xcom_push=True,
            deferrable=deferrable,
            poll_interval=0.5,
            startup_check_interval_seconds=1,
        )

    @task
    def sum_up(first: int, second: int) -> None:
        assert first + second == 5

    write = "echo %d > $AIRFLOW_XCOM_PATH; sleep 1"
    waits = pod("waits", write % 2, deferrable=False)
    defers = pod("defers", write % 3, deferrable=True)
    sum_up.override(task_id="sum")(waits.output, defers.output)
    pod("fails", "sleep 1; exit 3", deferrable=True)

if __name__ == "__main__":
    run = dag.test()
    print(json.dumps({instance.task_id: instance.state for instance in run.get_task_instances()}))
