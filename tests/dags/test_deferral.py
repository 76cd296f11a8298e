"""A task that leaves its worker while its pod runs ends as one that stays, whatever happens."""

import asyncio
from contextlib import suppress

import pytest
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


@pytest.fixture(autouse=True)
def no_pod_is_left(api: Api):
    yield
    wait_for(lambda: pods_of(api) == [], what="the end of the pods")


@pytest.fixture(params=[1, 2])
def nodes(request):
    return request.param


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


def watch(trigger, end):
    """Run a trigger for a second, then end it."""

    async def run():
        with suppress(TimeoutError):
            await asyncio.wait_for(first_event(trigger), 1)
        await end()

    asyncio.run(run())


def started(api, count):
    running = ["Running"] * count
    wait_for(lambda: [pod.status.phase for pod in pods_of(api)] == running, what="the pods")


def test_a_user_who_ends_the_task_ends_its_pods(api: Api, lab, nodes):
    trigger = leave(train("sleep 600"), context_of(lab, nodes))
    assert trigger.logging_interval == 30
    started(api, nodes)
    watch(trigger, trigger.on_kill)
    wait_for(lambda: pods_of(api) == [], what="the end of the pods")
    assert api.batch.list_namespaced_job(NAMESPACE).items == []


def test_a_triggerer_that_is_killed_or_stopped_ends_no_pod(api: Api, lab, nodes, tmp_path):
    """Another one takes its triggers over."""
    script = f"until [ -e {tmp_path}/end ]; do sleep 0.1; done; echo x >> {tmp_path}/ends"
    pod, context = train(script), context_of(lab, nodes)
    trigger = leave(pod, context)
    started(api, nodes)
    watch(trigger, trigger.cleanup)
    (tmp_path / "end").touch()
    event = asyncio.run(first_event(trigger))
    train(script).trigger_reentry(context, event)
    assert (tmp_path / "ends").read_text() == "x\n" * nodes


def test_what_failed_while_no_worker_watched_has_failed_and_is_not_run_again(
    api: Api, lab, nodes, tmp_path
):
    script = f"echo x >> {tmp_path}/ran; sleep 1; exit 1"
    pod, context = train(script), context_of(lab, nodes)
    event = asyncio.run(first_event(leave(pod, context)))
    with pytest.raises(AirflowException):
        train(script).trigger_reentry(context, event)
    assert (tmp_path / "ran").read_text() == "x\n" * nodes


@pytest.mark.timeout(60)
def test_a_pod_that_did_not_start_in_time_is_not_waited_for_again(api: Api, lab):
    context = context_of(lab, gpus=64)
    trigger = leave(train("true", size=Size.TRAIN), context)
    event = {"status": "error", "message": "", "namespace": NAMESPACE, "name": trigger.pod_name}
    with pytest.raises(TaskDeferred):
        train("true", size=Size.TRAIN).trigger_reentry(context, event)
    with pytest.raises(AirflowException, match="retryable: the pod did not start: no node has 64"):
        train("true", size=Size.TRAIN).trigger_reentry(context, {**event, "status": "timeout"})


def test_worker_and_triggerer_find_the_cluster_that_they_run_in(
    api: Api, server, lab, nodes, monkeypatch
):
    """Airflow runs in a pod, which has a service account, and needs no connection."""
    monkeypatch.delenv("AIRFLOW_CONN_KUBERNETES_DEFAULT")
    host, _, port = server.url.removeprefix("https://").partition(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    for library in (worker_client, triggerer_client):
        monkeypatch.setattr(library, "SERVICE_TOKEN_FILENAME", str(server.state / "token"))
        monkeypatch.setattr(library, "SERVICE_CERT_FILENAME", str(server.state / "certificate.pem"))
    context = context_of(lab, nodes)
    event = asyncio.run(first_event(leave(train("sleep 1"), context)))
    assert event["status"] == "success", event["message"]
    train("sleep 1").trigger_reentry(context, event)


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


def test_a_triggerer_that_fails_is_asked_again_and_at_last_a_worker_watches(
    api: Api, lab, nodes, tmp_path, capfd
):
    script = f"until [ -e {tmp_path}/end ]; do sleep 0.1; done; echo worked"
    pod, context = train(script), context_of(lab, nodes)
    trigger = leave(pod, context)
    started(api, nodes)
    where = {"namespace": NAMESPACE, "name": trigger.pod_name}
    failed = {"status": "error", "message": "no right to read pods", **where}
    for _ in range(3):
        with pytest.raises(TaskDeferred) as caught:
            train(script).trigger_reentry(context, {**failed, **trigger.trigger_kwargs})
        trigger = caught.value.trigger
    (tmp_path / "end").touch()
    train(script).trigger_reentry(context, {**failed, **trigger.trigger_kwargs})
    assert "worked" in capfd.readouterr().out


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
