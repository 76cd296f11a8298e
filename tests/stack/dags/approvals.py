"""The questions of a run as the main DAG asks them, between a real start and no steps."""

from airflow.sdk import DAG
from airflow.sdk.definitions.param import ParamsDict

from tuneline.config import models
from tuneline_airflow.launching import form, prepare_run
from tuneline_airflow.people import approve_release, approve_waivers, ask_waivers, review_pairs
from tuneline_airflow.pii_review import review_rows
from tuneline_airflow.pods import RUN_URI

# The test names the folder of its model in TUNELINE_MODELS.
(model,) = models()

with DAG("approvals", schedule=None) as dag:
    waivers = approve_waivers(model)
    prepare_run(model.name) >> ask_waivers(RUN_URI) >> waivers
    rows, findings = review_rows(model)
    pairs, votes = review_pairs(model)
    waivers >> [rows, pairs, approve_release(model)]
dag.params = ParamsDict(form(model))
