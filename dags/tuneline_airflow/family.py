"""The DAGs of each model: the same five, made from its file in `config/models`.

The ids of a file's DAGs end in `__<model>`; a project without a file has the plain ids. A model
whose file can't be used keeps its DAGs' ids, with one task that fails with the reason, and leaves
the other models alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pendulum
from airflow.sdk import DAG, Asset, get_parsing_context, task
from airflow.sdk.exceptions import AirflowFailException

from tuneline.config import Model, models
from tuneline_airflow.notify import announcers

START = pendulum.datetime(2025, 1, 1, tz="UTC")

MAIN = "finetune_to_production"
NIGHTLY = "nightly_retraining"
LOGS = "production_logs"
DRIFT = "drift_watch"
ROLLBACK = "rollback"


def dag_id(kind: str, model: Model) -> str:
    """Return the id of a model's DAG of a kind."""
    return kind + model.suffix


def dags_of(kind: str, build: Callable[[Model], DAG]) -> dict[str, DAG]:
    """Make the DAGs of a kind, one for each model.

    A worker that parses the file for one task needs no other DAG than that of the task.

    Args:
        kind: `MAIN`, `NIGHTLY`, `LOGS`, `DRIFT` or `ROLLBACK`.
        build: makes the DAG of a model.

    Returns:
        DAGs by id, for the globals of a DAG file.
    """
    wanted = get_parsing_context().dag_id
    made = {}
    for model in models():
        name = dag_id(kind, model)
        if wanted in (None, name):
            made[name] = _broken(name, model.problem) if model.problem else build(model)
    return made


def curated_asset(model: Model) -> Asset:
    """Return the asset that a curated day of a model's logs updates."""
    return Asset(name=f"curated_logs{model.suffix}", uri=f"tuneline-curated://{model.name}")


def settings_of(kind: str, model: Model, title: str, doc: str | None) -> dict[str, Any]:
    """Return the arguments that the DAGs of a family share.

    Args:
        kind: `MAIN`, `NIGHTLY`, `LOGS`, `DRIFT` or `ROLLBACK`.
        model: the model.
        title: name for a person.
        doc: description in Markdown.
    """
    return {
        "dag_id": dag_id(kind, model),
        "dag_display_name": f"{title}: {model.name}" if model.suffix else title,
        "doc_md": doc,
        "start_date": START,
        "catchup": False,
        "max_active_runs": 1,
        "default_args": {
            "owner": ", ".join(model.file.owners),
            "on_failure_callback": announcers("failure", model),
        },
        "tags": ["tuneline", "llm", *([model.name] if model.suffix else [])],
    }


def _broken(name: str, problem: str) -> DAG:
    with DAG(
        dag_id=name,
        dag_display_name=f"{name} (its model file is wrong)",
        description=problem,
        doc_md=f"### This model's file can't be used\n\n{problem}",
        schedule=None,
        start_date=START,
        catchup=False,
        tags=["tuneline", "broken"],
    ) as dag:

        @task
        def read_model_file() -> None:
            """Fail with the reason."""
            raise AirflowFailException(problem)

        read_model_file()
    return dag
