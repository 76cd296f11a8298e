"""Airflow's own operators, unmodified, against a real server."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.cncf.kubernetes.operators.job import KubernetesJobOperator
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import AirflowException
from kubernetes.client.exceptions import ApiException
from tests.lab.pods import IMAGE, NAMESPACE, Api, Server, wait_for
from tests.lab.tasks import TaskStateStore, connect, context_of


def remembering(task_id: str, directory: Path, try_number: int = 1) -> dict[str, Any]:
    """Return the context of a task whose state lies in a folder."""
    store = TaskStateStore(directory / "task-state.json")
    return context_of(task_id, try_number=try_number, store=store)


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


def test_task_whose_image_is_missing_fails_at_once(connected: Api, tmp_path: Path) -> None:
    task = KubernetesPodOperator(task_id="no_image", image="unknown:1", cmds=["true"])
    with pytest.raises(AirflowException) as caught:
        task.execute(remembering("no_image", tmp_path))
    # The operator's cleaning up raises once more.
    assert 'image "unknown:1" is not in' in str(caught.value.__context__)


def test_task_waits_in_vain_for_a_gpu(connected: Api, tmp_path: Path) -> None:
    task = pod_task(
        "no_gpu",
        "true",
        container_resources={"limits": {"nvidia.com/gpu": "64"}},
        schedule_timeout_seconds=1,
    )
    with pytest.raises(AirflowException) as caught:
        task.execute(remembering("no_gpu", tmp_path))
    assert "too long to be scheduled" in str(caught.value.__context__)


def _work(task_id: str, script: str, directory: Path) -> None:
    pod_task(task_id, script).execute(remembering(task_id, directory))


@pytest.mark.parametrize("remembered", [True, False])
def test_next_try_finds_the_pod_of_a_killed_worker(
    connected: Api, tmp_path: Path, remembered: bool
) -> None:
    task_id = f"reattached_{remembered}".lower()
    script = f"echo x >> {tmp_path}/runs; sleep 2"
    worker = multiprocessing.get_context("fork").Process(
        target=_work, args=(task_id, script, tmp_path)
    )
    worker.start()
    for name in ("runs", "task-state.json"):
        wait_for((tmp_path / name).exists, what="the pod's work")
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    if not remembered:
        # The pod is then found by its labels.
        (tmp_path / "task-state.json").unlink()
    [pod] = pods_of(connected, task_id)
    context = remembering(task_id, tmp_path, try_number=2)
    pod_task(task_id, script).execute(context)
    assert context["ti"].pushed["pod_name"] == pod.metadata.name
    assert (tmp_path / "runs").read_text() == "x\n"


@pytest.mark.stack
def test_whole_dag_with_deferred_tasks(connected: Api, server: Server, tmp_path: Path) -> None:
    env = {
        **server.env,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__DAGS_FOLDER": str(Path(__file__).parent / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": os.environ["AIRFLOW_CONN_KUBERNETES_DEFAULT"],
        "IMAGE": IMAGE,
    }
    airflow = str(Path(sys.executable).with_name("airflow"))
    for command in (
        [airflow, "db", "migrate"],
        [sys.executable, str(Path(__file__).parent / "dags" / "pods_dag.py")],
    ):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    states = json.loads(done.stdout.splitlines()[-1])
    assert states == {
        "waits": "success",
        "defers": "success",
        "fails": "failed",
    }
    assert pods_of(connected, "defers") == []


def test_killed_task_takes_its_pod_along(connected: Api, tmp_path: Path) -> None:
    task = pod_task("killed", "sleep 600", termination_grace_period=1)
    task.pod = task.get_or_create_pod(
        task.build_pod_request_obj(remembering("killed", tmp_path)), remembering("killed", tmp_path)
    )
    task.on_kill()
    wait_for(lambda: pods_of(connected, "killed") == [], what="the end of the pod")


def test_indexed_job(connected: Api, tmp_path: Path) -> None:
    script = f"echo $JOB_COMPLETION_INDEX >> {tmp_path}/indexes"
    task = KubernetesJobOperator(
        task_id="job",
        image=IMAGE,
        cmds=["bash", "-c", script],
        completion_mode="Indexed",
        completions=2,
        parallelism=2,
        backoff_limit=0,
        wait_until_job_complete=True,
        job_poll_interval=0.2,
    )
    task.execute(remembering("job", tmp_path))
    assert sorted((tmp_path / "indexes").read_text().split()) == ["0", "1"]


def test_failed_job(connected: Api, tmp_path: Path) -> None:
    task = KubernetesJobOperator(
        task_id="failed_job",
        image=IMAGE,
        cmds=["bash", "-c", "exit 1"],
        parallelism=1,
        backoff_limit=0,
        wait_until_job_complete=True,
        job_poll_interval=0.2,
    )
    with pytest.raises(AirflowException, match="BackoffLimitExceeded"):
        task.execute(remembering("failed_job", tmp_path))
