"""The questions of a run as the main DAG asks them, between a real start and no steps."""

from dataclasses import asdict

from airflow.sdk import DAG, task
from airflow.sdk.definitions.param import ParamsDict

from tuneline.airflow.family import form, prepare_run
from tuneline.airflow.people import review_pairs, review_rows
from tuneline.artifacts.answers import PII_SHEET
from tuneline.config import models
from tuneline.data.pii.review.review import open_forms
from tuneline.people.ballots import assignments_of
from tuneline.run import Run

# The test names the folder of its model in TUNELINE_MODELS.
(model,) = models()

with DAG(f"approvals{model.suffix}", schedule=None) as dag:

    @task
    def rows(run_uri: str) -> list[list[int]]:
        """Stands for the task that scrubbed them."""
        return open_forms(Run.open(run_uri))

    @task
    def pairs(run_uri: str) -> list[dict[str, object]]:
        """Stands for the task that drew them."""
        return [asdict(assignment) for assignment in assignments_of(Run.open(run_uri))]

    @task.sensor(poke_interval=0.5, timeout=300)
    def evidence(run_uri: str) -> bool:
        """Stands for the steps that leave what people read."""
        return PII_SHEET.find(Run.open(run_uri)) is not None

    run = prepare_run(model.name)
    ready = evidence(run)
    drawn, dealt = rows(run), pairs(run)
    review_rows(model, drawn)
    review_pairs(model, dealt)
    ready >> [drawn, dealt]
dag.params = ParamsDict(form(model))
