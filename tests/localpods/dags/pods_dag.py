"""A DAG of pods for the test with Airflow's scheduler code: awaited, deferred, and failing."""

import json
import os

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG

with DAG("pods") as dag:

    def pod(task_id: str, script: str, *, deferrable: bool) -> KubernetesPodOperator:
        return KubernetesPodOperator(
            task_id=task_id,
            image=os.environ.get("IMAGE", "none"),
            cmds=["bash", "-c", script],
            deferrable=deferrable,
            poll_interval=0.5,
            startup_check_interval_seconds=1,
        )

    pod("waits", "sleep 1", deferrable=False)
    pod("defers", "sleep 1", deferrable=True)
    pod("fails", "sleep 1; exit 3", deferrable=True)

if __name__ == "__main__":
    run = dag.test()
    print(json.dumps({instance.task_id: instance.state for instance in run.get_task_instances()}))
