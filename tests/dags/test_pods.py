import re

import pytest

from tuneline.catalogue import get_step
from tuneline.config import PodConfig
from tuneline_airflow.pods import pod_name
from tuneline_airflow.steps import pod_of

URI = "s3://bucket/prefix/runs/manual__2026-10-18T00:31:53.123456+00:00"


def step_pod(step_id):
    return pod_of(get_step(step_id))


def request(pod):
    pod.name = pod_name(URI, pod.task_id, 1)
    return pod.build_pod_request_obj(dry_run=True)


def test_a_pod_takes_its_size_from_the_run():
    pod = step_pod("deduplication")
    pod.apply(PodConfig(namespace="ml", memory="3Gi", deadline_hours=0.5))
    made = request(pod)
    container = made.spec.containers[0]
    assert made.metadata.namespace == "ml"
    assert made.spec.active_deadline_seconds == 1800
    assert container.resources.limits == {"memory": "3Gi", "cpu": "2"}
    assert container.resources.requests == {"memory": "3Gi", "cpu": "2"}
    assert made.spec.automount_service_account_token is False


def test_a_step_may_have_a_deadline_of_its_own():
    pods = PodConfig(deadline_hours=12)
    train = step_pod("train")
    train.apply(pods, 1.5)
    assert request(train).spec.active_deadline_seconds == 5400
    train.apply(pods, None)
    assert request(train).spec.active_deadline_seconds == 12 * 3600


def test_a_gpu_gets_half_an_hour_to_start():
    train, lora = step_pod("train"), step_pod("lora_selection")
    assert train.schedule_timeout_seconds == train.startup_timeout_seconds == 1800
    assert lora.schedule_timeout_seconds == lora.startup_timeout_seconds == 600


def test_a_step_that_resumes_has_time_to_leave_a_checkpoint():
    train, lora = step_pod("train"), step_pod("lora_selection")
    assert request(train).spec.termination_grace_period_seconds == 120
    assert request(lora).spec.termination_grace_period_seconds == 30


def test_tries_are_as_far_apart_as_the_deployment_says(monkeypatch):
    assert step_pod("train").retry_delay.total_seconds() == 20
    monkeypatch.setenv("TUNELINE_RETRY_SECONDS", "1.5")
    assert step_pod("train").retry_delay.total_seconds() == 1.5


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf"])
def test_a_delay_that_is_not_a_number_is_logged_and_does_not_hide_the_dag(
    monkeypatch, caplog, value
):
    monkeypatch.setenv("TUNELINE_RETRY_SECONDS", value)
    monkeypatch.setenv("TUNELINE_POD_POLL_SECONDS", value)
    train = step_pod("train")
    assert train.retry_delay.total_seconds() == 20
    assert train.startup_check_interval_seconds == 5
    assert f"TUNELINE_RETRY_SECONDS is {value!r}, not a positive number" in caplog.text


def test_gpu_steps_ask_for_gpus_and_the_gpu_image_only_when_the_run_has_some():
    with_gpus = PodConfig(gpus=2, gpu_image="registry/ml-cuda:1", image="registry/ml:1")
    train, lora = step_pod("train"), step_pod("lora_selection")
    train.apply(with_gpus)
    lora.apply(with_gpus)
    trained = request(train).spec.containers[0]
    assert trained.resources.limits["nvidia.com/gpu"] == "2"
    assert trained.image == "registry/ml-cuda:1"
    other = request(lora).spec.containers[0]
    assert "nvidia.com/gpu" not in other.resources.limits
    assert other.image == "registry/ml:1"
    without = step_pod("train")
    without.apply(PodConfig(gpus=0))
    assert "nvidia.com/gpu" not in request(without).spec.containers[0].resources.limits


def test_the_image_of_the_deployment_stands_until_a_run_names_another(monkeypatch):
    monkeypatch.setenv("TUNELINE_IMAGE", "registry/ml:release")
    pod = step_pod("deduplication")
    pod.apply(PodConfig())
    assert request(pod).spec.containers[0].image == "registry/ml:release"
    pod.apply(PodConfig(image="registry/ml:mine"))
    assert request(pod).spec.containers[0].image == "registry/ml:mine"


def test_pods_tell_steps_which_task_they_run_for():
    pod = step_pod("deduplication")
    names = ("DAG_ID", "RUN_ID", "TASK_ID", "TRY_NUMBER", "LAST_TRY")
    told = {f"TUNELINE_AIRFLOW_{name}" for name in names}
    assert {entry.name for entry in pod.env_vars} == told | {"TUNELINE_CONTRACT"}


@pytest.mark.parametrize("step", ["quantization_verification", "train"])
@pytest.mark.parametrize(
    "uri", [URI, "file:///x/runs/a", "file:///x/runs/" + "z" * 200, "file:///x/runs/___"]
)
def test_pod_names_are_labels(uri, step):
    name = pod_name(uri, step, 1)
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= 63
    assert step.replace("_", "-") in name


def test_a_pod_name_is_keyed_by_run_step_and_try():
    names = {
        pod_name(uri, step, number)
        for uri in ("file:///x/runs/a", "file:///y/runs/a")
        for step in ("train", "lineage")
        for number in (1, 2)
    }
    assert len(names) == 8
    assert pod_name(URI, "train", 1) == pod_name(URI, "train", 1)


def test_pods_of_a_mapped_task_have_names_of_their_own():
    names = {pod_name(URI, "sweep", number, index) for number in (1, 2) for index in (0, 1, 10)}
    assert len(names) == 6
    assert all(len(name) <= 63 and "sweep" in name for name in names)
    # The eleventh index of the first try is not the first index of the eleventh.
    assert pod_name(URI, "sweep", 1, 10) not in {pod_name(URI, "sweep", 11, i) for i in (-1, 0, 1)}
    assert pod_name(URI, "train", 1, -1) == pod_name(URI, "train", 1)
