"""The task that syncs offline runs starts a pod only when there is something to sync."""

import json

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowSkipException
from tests.lab.runs import Lab
from tests.lab.tasks import context_of, prepared_run

from tuneline.airflow.pods import StepPod
from tuneline.airflow.steps import pod_of
from tuneline.catalogue import get_step

OFFLINE = {"tracker": "wandb", "mode": "offline", "run_id": "x", "directory": "wandb/offline-x"}
ONLINE = {"tracker": "mlflow", "mode": "online", "run_id": "x", "url": "http://t/#/x"}


@pytest.fixture
def run(tmp_path):
    return Lab(tmp_path, {}).run


@pytest.fixture
def started(monkeypatch):
    """Contexts for which a pod was started."""
    found = []
    monkeypatch.setattr(StepPod, "carry_out", lambda self, context, pods: found.append(context))
    return found


def sync(run):
    """Carry the task out."""
    prepared = prepared_run(run.uri, run.config.pods)
    pod_of(get_step("sync_tracking")).execute(context_of("sync_tracking", prepared=prepared))


def leave(run, *tracked):
    document = json.dumps({"steps": 1, "tracking": list(tracked)}).encode()
    run.store.put_bytes(run.step_key("train", "run.json"), document)


def test_a_pod_is_started_only_if_something_waits_to_be_synced(run, started):
    # A training that left nothing, or whose trackers got the run live, is no failure.
    for tracked in (None, [], [ONLINE]):
        if tracked is not None:
            leave(run, *tracked)
        with pytest.raises(AirflowSkipException, match="nothing to sync"):
            sync(run)
    assert started == []
    leave(run, ONLINE, OFFLINE)
    sync(run)
    assert len(started) == 1


def test_what_goes_wrong_skips_and_names_the_command(run, monkeypatch):
    def fail(self, context, pods):
        raise AirflowException("Pod took too long to start")

    monkeypatch.setattr(StepPod, "carry_out", fail)
    leave(run, OFFLINE)
    with pytest.raises(AirflowSkipException, match=f"sync-tracking --run {run.uri}` does it later"):
        sync(run)


def test_nothing_waits_for_it(dag):
    task = dag.get_task("sync_tracking")
    assert task.upstream_task_ids == {"train"}
    assert task.downstream_task_ids == set()
    assert task.task_group.group_id == "training"
