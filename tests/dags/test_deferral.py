"""A task that leaves its worker while its pod runs ends as one that stays, whatever happens."""

import asyncio
from contextlib import suppress

import pytest
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowException, TaskDeferred
from tests.lab import tasks as task_lab
from tests.lab.pods import IMAGE, NAMESPACE, Api
from tests.lab.runs import Lab
from tests.lab.tasks import first_event, prepared_run
from tests.lab.waiting import wait_for

from tuneline.airflow.failures import StepRetryPolicy
from tuneline.airflow.training import TrainingPods
from tuneline.config import PodConfig


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, {})


def train(script, **kwargs):
    pod = TrainingPods(task_id="train", command=[], deferrable=True, **kwargs)
    pod.cmds = ["bash", "-c", script]
    pod.env_vars = []
    return pod


def context_of(lab, nodes=1, **options):
    prepared = prepared_run(lab.run.uri, PodConfig(namespace=NAMESPACE, image=IMAGE, nodes=nodes))
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


def test_a_pod_that_has_ended_before_the_task_could_defer(api: Api, lab, tmp_path):
    """A worker died between making the pod and leaving; another one finds what it has done."""
    context = context_of(lab, store=task_lab.TaskStateStore(tmp_path / "state.json"))
    script = f"echo x >> {tmp_path}/ran"
    leave(train(script), context)
    wait_for(lambda: pods_of(api)[0].status.phase == "Succeeded", what="the end of the pod")
    train(script).execute(context)
    assert (tmp_path / "ran").read_text() == "x\n"
    wait_for(lambda: pods_of(api) == [], what="the end of the pod")
