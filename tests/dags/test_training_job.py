"""Training on several nodes: an Indexed Job whose pods know each other, and why it failed."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import models as k8s
from tests.lab import tasks as task_lab
from tests.lab.charts import objects, rendered
from tests.lab.ml_environment import ml, planned_runs
from tests.lab.pods import IMAGE, NAMESPACE, Api, Server
from tests.lab.tasks import prepared_run
from tests.lab.waiting import wait_for

from tuneline.airflow.failures import StepRetryPolicy
from tuneline.airflow.training import PART, SERVICE, TrainingJob, TrainingPods
from tuneline.catalogue import Size
from tuneline.config import PodConfig

INDEX = "batch.kubernetes.io/job-completion-index"
URI = "file:///x/runs/manual__2026-10-18T00:31:53.123456+00:00" + "z" * 60


def context_of(run_uri: str, nodes: int, try_number: int = 1, **pods: Any) -> dict[str, Any]:
    config = PodConfig(**{"namespace": NAMESPACE, "nodes": nodes, "memory": "6Gi", **pods})
    forgetful = SimpleNamespace(get=lambda key: None, set=lambda key, value: None)
    return task_lab.context_of(
        "train", try_number=try_number, store=forgetful, prepared=prepared_run(run_uri, config)
    )


def training(*command: str) -> TrainingPods:
    pods = TrainingPods(task_id="train", command=[], size=Size.TRAIN)
    # Templates are rendered by then.
    pods.cmds = list(command)
    pods.env_vars = [k8s.V1EnvVar(name="TUNELINE_CONTRACT", value="1")]
    return pods


def run_script(script: str, run: str, nodes: int = 2, try_number: int = 1) -> TrainingPods:
    pods = training("bash", "-c", script)
    task_lab.carry_out(pods, context_of(f"file:///x/runs/{run}", nodes, try_number))
    return pods


def jobs_of(api: Api) -> list[Any]:
    return api.batch.list_namespaced_job(NAMESPACE).items


def decision(pods: TrainingPods, error: BaseException) -> Any:
    return StepRetryPolicy().evaluate(error, 1, 8, {"task": pods})


@pytest.mark.usefixtures("either_way")
def test_every_pod_knows_itself_and_pod_0(api: Api, tmp_path: Path) -> None:
    run_script(f"echo $TUNELINE_RENDEZVOUS > {tmp_path}/$JOB_COMPLETION_INDEX", "knows", nodes=3)
    addresses = [(tmp_path / str(index)).read_text().strip() for index in range(3)]
    assert len(set(addresses)) == 1
    # On this machine the pods share the loopback device.
    host, port = addresses[0].split(":")
    assert host == "127.0.0.1"
    assert 20000 <= int(port) < 30000
    wait_for(lambda: jobs_of(api) == [], what="the end of the job")


def test_one_node_is_a_pod(api: Api, tmp_path: Path) -> None:
    pods = training("bash", "-c", f"echo ${{JOB_COMPLETION_INDEX-none}} > {tmp_path}/index")
    pods.execute(context_of("file:///x/runs/alone", nodes=1))
    assert (tmp_path / "index").read_text() == "none\n"
    assert pods.job is None


def test_what_the_job_asks_of_a_cluster(api: Api, tmp_path: Path) -> None:
    step = training("true")
    step.apply(PodConfig(namespace="ml", nodes=2, gpus=8, memory="64Gi").of(Size.TRAIN))
    job = TrainingJob(task_id="train", step=step, nodes=2, run_uri=URI, try_number=3)
    made = job.build_job_request_obj(None)
    spec, template = made.spec, made.spec.template
    assert (spec.completion_mode, spec.completions, spec.parallelism) == ("Indexed", 2, 2)
    assert spec.backoff_limit == 0
    assert len(f"{made.metadata.name}-1") <= 63
    assert template.spec.restart_policy == "Never"
    [container] = template.spec.containers
    assert container.resources.limits == {"memory": "64Gi", "cpu": "2", "nvidia.com/gpu": "8"}
    # Each pod is isolated like the one of a training on one node.
    assert template.spec.security_context == step.security_context
    assert template.spec.security_context.run_as_non_root is True
    assert container.security_context == step.container_security_context
    assert container.security_context.read_only_root_filesystem is True
    assert "/dev/shm" in [m.mount_path for m in container.volume_mounts]
    # The Service of the chart selects these pods and gives their host names a domain.
    services = [o for o in objects(rendered(tmp_path)[0]) if o["kind"] == "Service"]
    (service,) = (o for o in services if o["spec"].get("clusterIP") == "None")
    assert service["metadata"]["name"] == template.spec.subdomain == SERVICE
    assert service["spec"]["selector"] == PART
    assert template.metadata.labels.items() >= PART.items()
    env = {entry.name: entry.value for entry in container.env}
    host = env["TUNELINE_RENDEZVOUS"].split(":")[0]
    assert host == f"{made.metadata.name}-0.{SERVICE}"


@pytest.mark.usefixtures("either_way")
def test_a_user_error_of_one_pod_is_not_retried(api: Api) -> None:
    # The job that has failed ends the other, which then says that it was lost.
    script = """
    if [ $JOB_COMPLETION_INDEX = 1 ]; then
      echo 'user_error: two GPUs are there, four are asked for' > $TERMINATION_MESSAGE_PATH
      exit 2
    fi
    trap "echo 'retryable: lost another' > $TERMINATION_MESSAGE_PATH; exit 75" TERM
    sleep 600 & wait"""
    pods = training("bash", "-c", script)
    with pytest.raises(AirflowException, match="user_error: pod 1 of 2: two GPUs") as caught:
        task_lab.carry_out(pods, context_of("file:///x/runs/user-error", 2))
    assert decision(pods, caught.value).action == RetryAction.FAIL
    wait_for(lambda: jobs_of(api) == [], what="the end of the job")


@pytest.mark.usefixtures("either_way")
def test_a_killed_pod_is_worth_another_try(api: Api) -> None:
    pods = training(
        "bash", "-c", "if [ $JOB_COMPLETION_INDEX = 1 ]; then kill -9 $BASHPID; fi; sleep 60"
    )
    with pytest.raises(AirflowException, match=r"retryable: pod 1 of 2: .*exit code 137") as caught:
        task_lab.carry_out(pods, context_of("file:///x/runs/killed", 2))
    assert decision(pods, caught.value).action == RetryAction.RETRY


def failed_pod(index: int, message: str | None, exit_code: int, reason: str = "Error") -> Any:
    ended = k8s.V1ContainerStateTerminated(exit_code=exit_code, message=message, reason=reason)
    state = SimpleNamespace(state=k8s.V1ContainerState(terminated=ended))
    return SimpleNamespace(
        metadata=SimpleNamespace(name=f"pod-{index}", labels={INDEX: str(index)}),
        status=SimpleNamespace(phase="Failed", reason=None, container_statuses=[state]),
        spec=None,
    )


LOST = failed_pod(0, "retryable: lost the connection to another one", 75)


@pytest.mark.parametrize(
    ("failed", "blamed", "reason"),
    [
        # The pod that lost another one is not blamed.
        ([LOST, failed_pod(1, None, 137)], 1, "retryable: pod 1 of 2: it was killed"),
        ([LOST, failed_pod(1, "error: a bug", 1)], 1, "error: pod 1 of 2: a bug"),
        ([LOST, failed_pod(1, "user_error: no base", 2)], 1, "user_error: pod 1 of 2: no base"),
        ([LOST, failed_pod(1, None, 1)], 1, "error: pod 1 of 2: it ended with exit code 1"),
        # One that broke because another was killed does not end the run.
        ([failed_pod(0, "error: odd", 1), failed_pod(1, None, 137)], 1, "retryable: pod 1"),
        ([], None, "retryable: a training pod went away"),
    ],
)
def test_the_pod_that_is_the_cause_of_the_others_is_blamed(
    failed: list[Any], blamed: int | None, reason: str
) -> None:
    step = training("true")
    job = TrainingJob(task_id="train", step=step, nodes=2, run_uri=URI, try_number=1)
    job._pods = lambda name, namespace: failed
    assert f"\n{reason}" in job._why_failed("BackoffLimitExceeded", "job", "ml", {})
    if blamed is not None:
        assert step.remote_pod is failed[blamed]
    assert "\nuser_error: training ran past" in job._why_failed("DeadlineExceeded", "job", "ml", {})


@pytest.mark.usefixtures("either_way")
def test_a_pod_that_does_not_start_says_why(api: Api) -> None:
    pods = training("true")
    pods.schedule_timeout_seconds = 1
    context = context_of("file:///x/runs/pending", 2, gpus=64, gpu_image=IMAGE)
    with pytest.raises(AirflowException, match=r"retryable: training pod 0 .* 64 free GPUs"):
        task_lab.carry_out(pods, context)
    wait_for(lambda: jobs_of(api) == [], what="the end of the job")


@pytest.mark.usefixtures("either_way")
def test_the_next_worker_finds_the_job_of_one_that_died(api: Api, tmp_path: Path) -> None:
    script = f"echo x >> {tmp_path}/ran-$JOB_COMPLETION_INDEX; sleep 2"
    uri = "file:///x/runs/found"
    first = training("bash", "-c", script)
    first.apply(PodConfig(namespace=NAMESPACE, nodes=2).of(Size.TRAIN))
    job = TrainingJob(task_id="train", step=first, nodes=2, run_uri=uri, try_number=1)
    job.create_job(job.build_job_request_obj(context_of(uri, 2)))
    second = training("bash", "-c", script)
    task_lab.carry_out(second, context_of(uri, 2, try_number=2, image="ml:test"))
    assert [(tmp_path / f"ran-{i}").read_text() for i in range(2)] == ["x\n", "x\n"]
    wait_for(lambda: jobs_of(api) == [], what="the end of the job")


def test_a_killed_task_takes_its_pods_along(api: Api, tmp_path: Path) -> None:
    pods = training("bash", "-c", f"touch {tmp_path}/$JOB_COMPLETION_INDEX; sleep 600")
    context = context_of("file:///x/runs/cancelled", 2)

    def run() -> None:
        with pytest.raises(Exception):  # noqa: B017, PT011 - the job has gone away below it
            pods.execute(context)

    worker = threading.Thread(target=run)
    worker.start()
    wait_for(lambda: (tmp_path / "1").exists(), what="the second pod")
    pods.termination_grace_period = 1
    pods.on_kill()
    worker.join(timeout=30)
    assert not worker.is_alive()
    wait_for(lambda: jobs_of(api) == [], what="the end of the job")


def planned(folder: Path, *nodes: int, epochs: float, evaluations: int) -> list[str]:
    """URIs of runs that differ in their number of nodes."""
    training = {"epochs": epochs, "evaluations": evaluations}
    sections = [{"training": training, "pods": {"nodes": number}} for number in nodes]
    return planned_runs(folder, *sections, micro_batch=2)


def left_by(run_uri: str, name: str) -> Any:
    path = Path(run_uri.removeprefix("file://")) / "training" / "train" / name
    return json.loads(path.read_text())


def losses(run_uri: str) -> list[float]:
    return [float(e["eval_loss"]) for e in left_by(run_uri, "checkpoints.json")["evaluations"]]


@pytest.mark.stack
@pytest.mark.long
def test_two_pods_train_like_one_process(api: Api, tmp_path: Path) -> None:
    one, two = planned(tmp_path, 1, 2, epochs=2, evaluations=3)
    ml("-m", "tuneline.cli", "run", "train", "--run", one)
    training("tuneline", "run", "train", "--run", two).execute(context_of(two, 2, image="ml:test"))
    ours, theirs = left_by(two, "run.json"), left_by(one, "run.json")
    assert (ours["nodes"], ours["world_size"], ours["backend"]) == (2, 2, "gloo")
    assert (theirs["nodes"], theirs["world_size"], theirs["backend"]) == (1, 1, None)
    assert ours["tokens"] == theirs["tokens"]
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert losses(two)[-1] < losses(two)[0] - 1


@pytest.mark.stack
@pytest.mark.long
def test_a_killed_pod_fails_the_job_and_the_retry_resumes(
    api: Api, server: Server, tmp_path: Path
) -> None:
    [uri] = planned(tmp_path, 2, epochs=20, evaluations=10)
    pointer = Path(uri.removeprefix("file://")) / "work" / "train" / "latest.json"

    def kill_pod_1() -> None:
        wait_for(pointer.exists, what="the first checkpoint")
        pods = api.core.list_namespaced_pod(NAMESPACE, label_selector="tuneline.io/part=training")
        [second] = [pod for pod in pods.items if pod.metadata.labels[INDEX] == "1"]
        for process in server.processes():
            mark = process.environ().get("LOCALPODS_CONTAINER", "")
            if second.metadata.uid in mark:
                process.kill()

    killer = threading.Thread(target=kill_pod_1)
    killer.start()
    first = training("tuneline", "run", "train", "--run", uri)
    with pytest.raises(AirflowException, match=r"retryable: pod 1 of 2: it was killed") as caught:
        first.execute(context_of(uri, 2, image="ml:test"))
    killer.join()
    assert decision(first, caught.value).action == RetryAction.RETRY
    second = training("tuneline", "run", "train", "--run", uri)
    second.execute(context_of(uri, 2, try_number=2, image="ml:test"))
    run = left_by(uri, "run.json")
    assert run["resumed_from"] > 0
    assert run["steps"] == run["steps_planned"] == 90
