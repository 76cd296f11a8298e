"""Items of the main DAG one after the other, on real pods."""

import json

from airflow.sdk import DAG, task
from tests.lab.tasks import prepare_run

from tuneline.airflow.steps import tasks_of
from tuneline.catalogue import get_item

with DAG("errors") as dag:

    @task
    def promote() -> None:
        """Stands where the release stands."""

    before = prepare_run()
    for item in ("cold_start", "fallback", "health_checks"):
        step = tasks_of(get_item(item), "llama_cpp")
        # One try, so that the test does not wait for the next.
        step.first.retries = 0
        before >> step.first
        before = step.last
    before >> promote()

if __name__ == "__main__":
    made = dag.test()
    print(json.dumps({ti.task_id: str(ti.state) for ti in made.get_task_instances()}))
