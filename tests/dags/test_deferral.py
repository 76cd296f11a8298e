"""A task that leaves its worker while its pod runs ends as one that stays, whatever happens."""

import asyncio
from base64 import b64decode
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
import yaml
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowException, TaskDeferred
from kubernetes.client import models as k8s
from kubernetes.config import incluster_config as worker_client
from kubernetes_asyncio.config import incluster_config as triggerer_client
from tests.lab import tasks as task_lab
from tests.lab.pods import IMAGE, NAMESPACE, Api
from tests.lab.runs import Lab
from tests.lab.tasks import first_event, prepared_run
from tests.lab.waiting import wait_for

from tuneline.airflow import pods
from tuneline.airflow.failures import StepRetryPolicy
from tuneline.airflow.training import TrainingPods
from tuneline.catalogue import Size
from tuneline.config import PodConfig


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, {})


def train(script, **kwargs):
    pod = TrainingPods(task_id="train", command=[], deferrable=True, **kwargs)
    pod.cmds = ["bash", "-c", script]
    pod.env_vars = []
    return pod


def context_of(lab, nodes=1, gpus=0, **options):
    sized = PodConfig(namespace=NAMESPACE, image=IMAGE, gpu_image=IMAGE, nodes=nodes, gpus=gpus)
    prepared = prepared_run(lab.run.uri, sized)
    return task_lab.context_of("train", prepared=prepared, **options)


def leave(pod, context):
    """Carry the task out until it leaves its worker, and return its trigger."""
    with pytest.raises(TaskDeferred) as caught:
        pod.execute(context)
    assert caught.value.method_name == "trigger_reentry"
    return caught.value.trigger


def pods_of(api):
    return api.core.list_namespaced_pod(NAMESPACE).items


def started(api, count):
    def running():
        return [pod for pod in pods_of(api) if pod.status.phase == "Running"]

    return wait_for(lambda: len(running()) == count and running(), what="the pods")


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_user_who_ends_the_task_ends_its_pods(api: Api, lab, nodes):
    trigger = leave(train("sleep 600"), context_of(lab, nodes))
    assert trigger.logging_interval == 30
    started(api, nodes)

    async def killed_by_user():
        with suppress(TimeoutError):
            await asyncio.wait_for(first_event(trigger), 1)
        await trigger.on_kill()

    asyncio.run(killed_by_user())
    wait_for(lambda: pods_of(api) == [], what="the end of the pods")
    assert api.batch.list_namespaced_job(NAMESPACE).items == []


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_triggerer_that_is_killed_or_stopped_ends_no_pod(api: Api, lab, nodes, tmp_path):
    """Another one takes its triggers over."""
    script = f"until [ -e {tmp_path}/end ]; do sleep 0.1; done; echo x >> {tmp_path}/ends"
    pod, context = train(script), context_of(lab, nodes)
    trigger = leave(pod, context)
    started(api, nodes)

    async def stopped():
        with suppress(TimeoutError):
            await asyncio.wait_for(first_event(trigger), 1)
        await trigger.cleanup()

    asyncio.run(stopped())
    (tmp_path / "end").touch()
    event = asyncio.run(first_event(trigger))
    train(script).trigger_reentry(context, event)
    assert (tmp_path / "ends").read_text() == "x\n" * nodes
    wait_for(lambda: pods_of(api) == [], what="the end of the pods")


@pytest.mark.parametrize("nodes", [1, 2])
def test_what_failed_while_no_worker_watched_has_failed_and_is_not_run_again(
    api: Api, lab, nodes, tmp_path
):
    script = f"echo x >> {tmp_path}/ran; sleep 1; exit 1"
    pod, context = train(script), context_of(lab, nodes)
    event = asyncio.run(first_event(leave(pod, context)))
    with pytest.raises(AirflowException):
        train(script).trigger_reentry(context, event)
    assert (tmp_path / "ran").read_text() == "x\n" * nodes
    wait_for(lambda: pods_of(api) == [], what="the end of the pods")


@pytest.mark.timeout(60)
def test_a_pod_that_did_not_start_in_time_is_not_waited_for_again(api: Api, lab):
    context = context_of(lab, gpus=64)
    trigger = leave(train("true", size=Size.TRAIN), context)
    event = {"status": "timeout", "message": "too long", "namespace": NAMESPACE}
    with pytest.raises(AirflowException, match="retryable: the pod did not start: no node has 64"):
        train("true", size=Size.TRAIN).trigger_reentry(context, {**event, "name": trigger.pod_name})
    wait_for(lambda: pods_of(api) == [], what="the end of the pod")


@pytest.fixture
def in_cluster(api: Api, server, tmp_path, monkeypatch):
    """Airflow in a pod of the cluster, with a service account and without a connection."""
    (cluster,) = yaml.safe_load((server.state / "kubeconfig").read_text())["clusters"]
    where = urlsplit(cluster["cluster"]["server"])
    (tmp_path / "ca").write_bytes(b64decode(cluster["cluster"]["certificate-authority-data"]))
    monkeypatch.delenv("AIRFLOW_CONN_KUBERNETES_DEFAULT")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(where.hostname))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(where.port))
    for library in (worker_client, triggerer_client):
        monkeypatch.setattr(library, "SERVICE_TOKEN_FILENAME", str(server.state / "token"))
        monkeypatch.setattr(library, "SERVICE_CERT_FILENAME", str(tmp_path / "ca"))


@pytest.mark.usefixtures("in_cluster")
@pytest.mark.parametrize("nodes", [1, 2])
def test_worker_and_triggerer_find_the_cluster_that_they_run_in(lab, nodes):
    context = context_of(lab, nodes)
    event = asyncio.run(first_event(leave(train("sleep 1"), context)))
    assert event["status"] == "success", event["message"]
    train("sleep 1").trigger_reentry(context, event)


def test_a_trigger_that_fails_while_the_pod_waits_for_a_node_is_started_again(api: Api, lab):
    context = context_of(lab, gpus=64)
    trigger = leave(train("true", size=Size.TRAIN), context)
    event = {"status": "error", "message": "no answer", "namespace": NAMESPACE}
    again = train("true", size=Size.TRAIN)
    with pytest.raises(TaskDeferred):
        again.trigger_reentry(context, {**event, "name": trigger.pod_name})
    api.core.delete_namespaced_pod(trigger.pod_name, NAMESPACE, grace_period_seconds=0)


@pytest.mark.parametrize("saw", ["error", "success"])
def test_a_pod_that_is_gone_when_the_task_goes_on(api: Api, lab, saw):
    pod, context = train("sleep 600"), context_of(lab)
    trigger = leave(pod, context)
    api.core.delete_namespaced_pod(trigger.pod_name, NAMESPACE, grace_period_seconds=0)
    wait_for(lambda: not api.exists(trigger.pod_name), what="the end of the pod")
    again = train("sleep 600")
    if saw == "success":
        # What it left in the store is judged.
        event = {"status": "success", "name": trigger.pod_name, "namespace": NAMESPACE}
        again.trigger_reentry(context, event)
        return
    event = asyncio.run(first_event(trigger))
    with pytest.raises(AirflowException, match="the pod was deleted while") as caught:
        again.trigger_reentry(context, event)
    decision = StepRetryPolicy().evaluate(caught.value, 1, 8, {"task": again})
    assert decision.action == RetryAction.RETRY


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_triggerer_that_fails_is_asked_again_and_at_last_a_worker_watches(
    api: Api, lab, nodes, tmp_path, capfd
):
    script = f"until [ -e {tmp_path}/end ]; do sleep 0.1; done; echo worked"
    pod, context = train(script), context_of(lab, nodes)
    trigger = leave(pod, context)
    started(api, nodes)
    for _ in range(3):
        failed = {"status": "error", "message": "no right to read pods", **trigger.trigger_kwargs}
        where = {"name": trigger.pod_name, "namespace": NAMESPACE}
        with pytest.raises(TaskDeferred) as caught:
            train(script).trigger_reentry(context, {**failed, **where})
        trigger = caught.value.trigger
    (tmp_path / "end").touch()
    train(script).trigger_reentry(context, {**failed, **where, **trigger.trigger_kwargs})
    assert "worked" in capfd.readouterr().out
    wait_for(lambda: pods_of(api) == [], what="the end of the pods")


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_log_grows_while_the_pod_runs_and_has_every_line_at_the_end(
    api: Api, lab, nodes, capfd
):
    script = "for i in 1 2 3 4 5 6 7 8; do echo line-$i-end; sleep 0.5; done"
    context = context_of(lab, nodes)
    trigger = leave(train(script, logging_interval=1), context)
    event = asyncio.run(first_event(trigger))
    live = capfd.readouterr().out
    assert "line-1-end" in live
    assert "line-8-end" not in live
    train(script).trigger_reentry(context, event)
    rest = capfd.readouterr().out
    assert [i for i in range(1, 9) if f"line-{i}-end" not in rest] == []


def test_an_evicted_pod_is_not_one_that_did_not_start():
    """Its containers have no status any more."""
    gone = k8s.V1Pod(status=k8s.V1PodStatus(phase="Failed", reason="Evicted"))
    train("true").await_pod_start(gone)


def test_a_pod_that_has_ended_before_the_task_could_defer(api: Api, lab, tmp_path, monkeypatch):
    """A worker died between making the pod and leaving; another one finds what it has done."""
    context = context_of(lab, store=task_lab.TaskStateStore(tmp_path / "state.json"))
    script = f"echo x >> {tmp_path}/ran"
    leave(train(script), context)
    wait_for(lambda: pods_of(api)[0].status.phase == "Succeeded", what="the end of the pod")
    judged = []
    monkeypatch.setattr(pods, "judge", lambda *arguments: judged.append(arguments))
    train(script).execute(context)
    assert (tmp_path / "ran").read_text() == "x\n"
    assert len(judged) == 1
    wait_for(lambda: pods_of(api) == [], what="the end of the pod")
