"""All DAGs of Tuneline: these lines are what a DAG folder of Airflow needs."""

from tuneline.airflow import dags

globals().update(dags())
