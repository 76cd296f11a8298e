"""Tuneline in Airflow: the DAGs of each model, the tab of a run, pods, and tasks for people.

Only what is imported inside the functions needs Airflow: without it this module imports too.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from tuneline.errors import UserError

# Retry policies and questions that hold no triggerer came with it.
OLDEST = (3, 3)


def dags() -> dict[str, Any]:
    """Return the DAGs of all models by id, for the globals of a file in Airflow's DAG folder.

    Raises:
        UserError: if this Airflow is too old, which Airflow shows as an import error of the file.
    """
    found = metadata.version("apache-airflow-core")
    if tuple(map(int, found.split(".")[:2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise UserError(f"Tuneline needs Airflow ≥ {oldest}, this is {found}; upgrade Airflow")
    from tuneline.airflow.family import make_dags

    return make_dags()


def get_provider_info() -> dict[str, Any]:
    """Return what `airflow providers list` and the providers page of the UI show."""
    return {
        "package-name": "tuneline",
        "name": "Tuneline",
        "description": "From raw instruction data to a served LLM, with measured evidence.",
        "versions": [metadata.version("tuneline")],
        "notifications": ["tuneline.airflow.notify.Announce"],
    }
