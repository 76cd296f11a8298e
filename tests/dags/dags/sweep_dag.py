"""The sweep of the main DAG between what comes before it and what follows it, on real pods."""

import json
import os

from airflow.sdk import DAG, TriggerRule, get_current_context, task

from tuneline.run import Run
from tuneline_airflow.sweep import sweep

with DAG("sweep") as dag:

    @task
    def prepare_run() -> str:
        uri = os.environ["RUN_URI"]
        pods = Run.open(uri).config.pods.model_dump(mode="json")
        get_current_context()["ti"].xcom_push(key="pods", value=pods)
        return uri

    @task(trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
    def lora_selection() -> None:
        """Stands where the item stands."""

    asked, trials = sweep()
    run, chosen = prepare_run(), lora_selection()
    run >> asked
    [run, trials] >> chosen

if __name__ == "__main__":
    made = dag.test()
    states = [
        (ti.task_id, ti.map_index, str(ti.state), ti.rendered_map_index)
        for ti in made.get_task_instances()
    ]
    print(json.dumps(sorted(states, key=lambda state: state[:2])))
