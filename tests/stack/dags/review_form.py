"""The questions of the blind review as the main DAG asks them, on a run that a test prepared."""

import os

from airflow.sdk import DAG, task

from tuneline.config import Model, ModelFile
from tuneline_airflow.people import review_pairs

with DAG("review_form", schedule=None):

    @task
    def prepare_run() -> str:
        return os.environ["REVIEW_RUN_URI"]

    assigned, answers = review_pairs(Model("m", "", ModelFile()))
    prepare_run() >> assigned
