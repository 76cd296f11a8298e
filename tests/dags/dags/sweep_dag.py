"""The mapped tasks of the main DAG between what comes before and after them, on real pods."""

import json

from airflow.sdk import DAG, TriggerRule, task
from tests.lab.tasks import prepare_run

from tuneline.airflow.steps import answer_holdout, pod_of
from tuneline.airflow.training import sweep
from tuneline.catalogue import get_item, get_step

with DAG("sweep") as dag:

    @task(trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
    def lora_selection() -> None:
        """Stands where the item stands."""

    @task(trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
    def holdout_performance() -> None:
        """Scores what several pods have answered."""

    @task
    def review_rows(numbers: list[int]) -> None:
        """Stands where people are asked about rows."""

    rows = pod_of(get_item("pii_scrubbing"))
    review_rows.expand(numbers=rows.output)
    asked, trials = sweep()
    built = pod_of(get_step("build_engine"))
    shards = answer_holdout(built.output, "llama_cpp")
    run, chosen = prepare_run(), lora_selection()
    run >> [asked, rows, built]
    [run, trials] >> chosen
    [built, shards] >> holdout_performance()

if __name__ == "__main__":
    made = dag.test()
    states = [
        (ti.task_id, ti.map_index, str(ti.state), ti.rendered_map_index)
        for ti in made.get_task_instances()
    ]
    print(json.dumps(sorted(states, key=lambda state: state[:2])))
