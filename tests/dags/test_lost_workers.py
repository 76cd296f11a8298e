"""A worker that dies leaves its pod; the next try goes on with that one, also when it has ended."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowException
from tests.lab.pods import IMAGE, NAMESPACE, Api
from tests.lab.tasks import TaskStateStore, carry_out, context_of, prepared_run
from tests.lab.waiting import wait_for

from tuneline.airflow.failures import StepRetryPolicy
from tuneline.airflow.training import TrainingPods
from tuneline.config import PodConfig

pytestmark = pytest.mark.usefixtures("either_way")

# Says when it begins, and goes on for as long as the file is not there.
SCRIPT = "echo began >> {folder}/log; until [ -e {folder}/end ]; do sleep 0.1; done; {then}"


def train(folder: Path, try_number: int, then: str, *, remembers: bool) -> TrainingPods:
    """Carry the task out as a worker does."""
    pods = TrainingPods(task_id="train", command=[])
    # Templates are rendered by then.
    pods.cmds = ["bash", "-c", SCRIPT.format(folder=folder, then=then)]
    pods.env_vars = []
    # An Airflow before 3.3, or a worker that died before it noted its pod, has labels only.
    store = TaskStateStore(folder / "state.json") if remembers else None
    run_uri = f"file:///x/runs/{folder.name}"
    prepared = prepared_run(run_uri, PodConfig(namespace=NAMESPACE, image=IMAGE))
    context = context_of(
        "train", run_id=folder.name, try_number=try_number, store=store, prepared=prepared
    )
    carry_out(pods, context)
    return pods


def start(folder: Path, try_number: int, then: str, **options: bool) -> Any:
    worker = multiprocessing.get_context("fork").Process(
        target=train, args=(folder, try_number, then), kwargs=options
    )
    worker.start()
    return worker


def lose_worker(folder: Path, then: str, *, remembers: bool) -> None:
    """The first try, whose worker is killed while the pod trains."""
    worker = start(folder, 1, then, remembers=remembers)
    wait_for((folder / "log").exists, what="the pod's beginning")
    if remembers:
        wait_for((folder / "state.json").exists, what="the note of the pod")
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()


def pods_of(api: Api) -> list[Any]:
    return api.core.list_namespaced_pod(NAMESPACE).items


@pytest.mark.parametrize("remembers", [True, False])
def test_the_next_worker_finds_the_pod_of_one_that_died(
    api: Api, tmp_path: Path, capfd: pytest.CaptureFixture[str], remembers: bool
) -> None:
    lose_worker(tmp_path, "true", remembers=remembers)
    [first] = pods_of(api)
    assert first.status.phase == "Running"

    worker = start(tmp_path, 2, "true", remembers=remembers)
    output = []

    def follows() -> bool:
        output.append(capfd.readouterr().out)
        return "Reusing existing pod" in "".join(output)

    wait_for(follows, what="the second try at the pod")
    [second] = pods_of(api)
    assert second.metadata.uid == first.metadata.uid
    (tmp_path / "end").touch()
    worker.join(timeout=60)
    assert worker.exitcode == 0
    assert (tmp_path / "log").read_text() == "began\n"
    wait_for(lambda: pods_of(api) == [], what="the end of the pod")


@pytest.mark.parametrize(
    ("end", "phase", "remembers"),
    [("true", "Succeeded", True), ("true", "Succeeded", False), ("kill -9 $$", "Failed", True)],
)
def test_a_pod_that_has_ended_unwatched_is_run_again_if_it_failed(
    api: Api, tmp_path: Path, end: str, phase: str, remembers: bool
) -> None:
    """What it was that failed, the next one finds out by itself."""
    lose_worker(tmp_path, end, remembers=remembers)
    (tmp_path / "end").touch()
    wait_for(lambda: pods_of(api)[0].status.phase == phase, what="the end of the training")
    train(tmp_path, 2, "true", remembers=remembers)
    assert (tmp_path / "log").read_text() == "began\n" * (1 + (phase == "Failed"))
    wait_for(lambda: pods_of(api) == [], what="the end of the pod")


def test_a_pod_that_was_watched_to_its_end_is_not_found_again(api: Api, tmp_path: Path) -> None:
    (tmp_path / "end").touch()
    with pytest.raises(AirflowException) as caught:
        train(tmp_path, 1, "kill -9 $$", remembers=True)
    assert StepRetryPolicy().evaluate(caught.value, 1, 8).action == RetryAction.DEFAULT
    train(tmp_path, 2, "true", remembers=True)
    assert (tmp_path / "log").read_text() == "began\nbegan\n"
