"""The questions of the blind review as the main DAG asks them, on a run that a test prepared."""

import os
from dataclasses import asdict

from airflow.sdk import DAG, task

from tuneline.config import Model, ModelFile
from tuneline.people.ballots import assignments_of
from tuneline.run import Run
from tuneline_airflow.people import review_pairs

with DAG("review_form", schedule=None):

    @task
    def prepare_run() -> str:
        return os.environ["REVIEW_RUN_URI"]

    @task
    def pairs(run_uri: str) -> list[dict[str, object]]:
        """Stands for the task that drew them."""
        return [asdict(assignment) for assignment in assignments_of(Run.open(run_uri))]

    review_pairs(Model("m", "", ModelFile()), pairs(prepare_run()))
