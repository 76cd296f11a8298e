"""The parts of Airflow that an operator needs in a test: connection, context, task state."""

import asyncio
import copy
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import get_current_context, task
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import TaskDeferred
from tests.lab.pods import NAMESPACE, Server

from tuneline.catalogue import Size
from tuneline.run import Run


class TaskStateStore:
    """Keeps a task's state over its tries in a file, since it must outlive a process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> Any:
        return self._content().get(key)

    def set(self, key: str, value: Any) -> None:
        # Whole or not at all, as Airflow's database has it: a test kills the worker that writes.
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({**self._content(), key: value}))
        new.replace(self._path)

    def _content(self) -> dict[str, Any]:
        return json.loads(self._path.read_text()) if self._path.exists() else {}


def connection(server: Server, namespace: str = NAMESPACE) -> str:
    """Return a server as the connection `kubernetes_default`."""
    extra = {"kube_config_path": str(server.state / "kubeconfig"), "namespace": namespace}
    return json.dumps({"conn_type": "kubernetes", "extra": extra})


def connect(server: Server, patch: pytest.MonkeyPatch, namespace: str = NAMESPACE) -> None:
    """Put a server behind `kubernetes_default` and poll it five times a second."""
    patch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", connection(server, namespace))
    patch.setenv("TUNELINE_POD_POLL_SECONDS", "0.2")


def context_of(
    task_id: str,
    *,
    run_id: str = "manual__1",
    try_number: int = 1,
    max_tries: int = 2,
    store: Any = None,
    prepared: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the part of a task's context that the operators read."""
    pushed: dict[str, Any] = {}
    left = dict(prepared or {})
    task_instance = SimpleNamespace(
        dag_id="pipeline",
        task_id=task_id,
        run_id=run_id,
        map_index=-1,
        try_number=try_number,
        max_tries=max_tries,
        start_date=datetime.now(UTC),
        xcom_push=lambda key, value: pushed.update({key: value}),
        xcom_pull=lambda task_ids, key="return_value": left.get(key),
        pushed=pushed,
    )
    context = {"ti": task_instance, "run_id": run_id, "dag": SimpleNamespace(dag_id="pipeline")}
    return context if store is None else {**context, "task_state_store": store}


def prepared_run(run_uri: str, pods: Any) -> dict[str, Any]:
    """Return the values that `prepare_run` pushes for a run."""
    sizes = {size: pods.of(size).model_dump(mode="json") for size in Size}
    return {"pods": sizes, "deadlines": {}, "return_value": run_uri}


def carry_out(task: Any, context: Mapping[str, Any]) -> Any:
    """Carry a task out as Airflow does: in a worker; one that defers also in a triggerer."""
    task.deferrable = conf.getboolean("operators", "default_deferrable")
    made = copy.deepcopy(task.__dict__)
    execute = partial(task.execute, context)
    while True:
        try:
            return execute()
        except TaskDeferred as deferred:
            event = asyncio.run(first_event(deferred.trigger))
            # The next worker makes the operator anew.
            task.__dict__ = copy.deepcopy(made)
            execute = partial(getattr(task, deferred.method_name), context, event)


async def first_event(trigger: Any) -> Any:
    """Run a trigger that was stored and read again, to its first event."""
    path, arguments = trigger.serialize()
    async for event in resolve_name(path)(**arguments).run():
        return event.payload
    return None


@task
def prepare_run() -> str:
    """Return the run of the test, as the first task of a DAG; leave the sizes of its pods."""
    uri = os.environ["RUN_URI"]
    pods = Run.open(uri).config.pods_by_size()
    get_current_context()["ti"].xcom_push(key="pods", value=pods)
    return uri
