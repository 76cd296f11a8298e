"""Airflow's own operators, unmodified, against a real server.

Those of the DAG, which add little to them, wait, fail and make jobs on one in tests/dags.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import AirflowException
from kubernetes.client.exceptions import ApiException
from tests.lab.dag_runs import run_dag
from tests.lab.pods import IMAGE, NAMESPACE, Api, Server
from tests.lab.tasks import TaskStateStore, connect, context_of
from tests.lab.waiting import wait_for


def remembering(task_id: str, directory: Path) -> dict[str, Any]:
    """Return the context of a task whose state lies in a folder."""
    store = TaskStateStore(directory / "task-state.json")
    return context_of(task_id, store=store)


def pod_task(task_id: str, script: str, **options: Any) -> KubernetesPodOperator:
    return KubernetesPodOperator(
        task_id=task_id,
        image=IMAGE,
        cmds=["bash", "-c", script],
        startup_check_interval_seconds=1,
        **options,
    )


@pytest.fixture
def connected(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A server behind the connection `kubernetes_default`."""
    connect(server, monkeypatch)
    return Api(server)


def pods_of(api: Api, task_id: str) -> list[Any]:
    return api.core.list_namespaced_pod(NAMESPACE, label_selector=f"task_id={task_id}").items


def test_task_succeeds_and_shows_the_log(
    connected: Api, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pod_task("succeeds", "echo worked").execute(remembering("succeeds", tmp_path))
    assert "[base] worked" in capfd.readouterr().out
    # Deleted at its end, as the operator does by default.
    wait_for(lambda: pods_of(connected, "succeeds") == [], what="the end of the pod")


def test_task_that_pushes_an_xcom_is_refused_with_the_remedy(
    connected: Api, tmp_path: Path
) -> None:
    task = pod_task("with_xcom", "true", do_xcom_push=True)
    with pytest.raises(ApiException, match="do_xcom_push=False"):
        task.execute(remembering("with_xcom", tmp_path))


def test_task_fails_with_the_pod_and_its_last_words(connected: Api, tmp_path: Path) -> None:
    script = "echo 'row 7: no text' > $TERMINATION_MESSAGE_PATH; exit 2"
    task = pod_task("fails", script, on_finish_action="keep_pod")
    with pytest.raises(AirflowException, match="row 7: no text"):
        task.execute(remembering("fails", tmp_path))
    [pod] = pods_of(connected, "fails")
    assert pod.status.container_statuses[0].state.terminated.exit_code == 2
    assert pod.metadata.labels["already_checked"] == "True"


@pytest.mark.stack
def test_whole_dag_with_deferred_tasks(connected: Api, server: Server, tmp_path: Path) -> None:
    states = run_dag(
        Path(__file__).parent / "dags" / "pods_dag.py", tmp_path / "airflow", IMAGE=IMAGE
    )
    assert states == {"waits": "success", "defers": "success", "fails": "failed"}
    assert pods_of(connected, "defers") == []


def test_killed_task_takes_its_pod_along(connected: Api, tmp_path: Path) -> None:
    task = pod_task("killed", "sleep 600", termination_grace_period=1)
    task.pod = task.get_or_create_pod(
        task.build_pod_request_obj(remembering("killed", tmp_path)), remembering("killed", tmp_path)
    )
    task.on_kill()
    wait_for(lambda: pods_of(connected, "killed") == [], what="the end of the pod")
