"""The wait for a canary as the main DAG has it, after a run that a test has prepared."""

from airflow.sdk import DAG, Param, task

from tuneline.airflow.waiting import AwaitCanary

with DAG("canary", schedule=None, params={"run_uri": Param("", type="string")}) as dag:

    @task
    def prepare_run(run_uri: str) -> str:
        """Return the URI of the run."""
        return run_uri

    prepare_run("{{ params.run_uri }}") >> AwaitCanary()
