"""What a step's pod asks of the cluster, why it waits or ended, and whether it is tried again."""

import json
import re
from types import SimpleNamespace

import pytest
from airflow.sdk import Asset, RetryAction
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import models as k8s
from tests.lab.charts import NAMED, objects, rendered
from tests.lab.runs import Lab
from tests.lab.tasks import prepared_run

from tuneline.airflow.failures import (
    StepRetryPolicy,
    ending_reason,
    exit_code,
    memory_limit,
    out_of_memory,
    pending_reason,
    worker_retry_policy,
)
from tuneline.airflow.pods import StepPod, note_image, pod_name
from tuneline.airflow.steps import pod_of
from tuneline.airflow.training import TrainingJob
from tuneline.artifacts.governance import image_of
from tuneline.catalogue import STEPS, Size, get_step
from tuneline.config import PodConfig
from tuneline.errors import RetryableError, UserError

URI = "s3://bucket/prefix/runs/manual__2026-10-18T00:31:53.123456+00:00"


def step_pod(step_id):
    return pod_of(get_step(step_id))


def made(step, deadline=None, **pods):
    """The pod that the operator of a step asks the cluster for."""
    pod = step_pod(step) if isinstance(step, str) else step
    pod.apply(PodConfig(**pods).of(pod.size), deadline)
    pod.name = pod_name(URI, pod.task_id, 1)
    return pod.build_pod_request_obj(dry_run=True)


def container_of(step, **pods):
    return made(step, **pods).spec.containers[0]


def test_a_pod_takes_its_size_deadline_and_user_from_the_run(monkeypatch):
    pod = made("deduplication", namespace="ml", memory="3Gi", deadline_hours=0.5, user=1234)
    resources = pod.spec.containers[0].resources
    assert pod.metadata.namespace == "ml"
    connection = {"conn_type": "kubernetes", "extra": {"namespace": "team"}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))
    assert made("deduplication").metadata.namespace == "team"
    assert pod.spec.active_deadline_seconds == 1800
    assert resources.limits == resources.requests == {"memory": "3Gi", "cpu": "2"}
    security = pod.spec.security_context
    assert (security.run_as_user, security.fs_group) == (1234, 1234)
    # A step may have a deadline of its own.
    assert made("train", 1.5, deadline_hours=12).spec.active_deadline_seconds == 5400
    assert made("train", None, deadline_hours=12).spec.active_deadline_seconds == 12 * 3600


def test_training_has_time_to_get_a_gpu_and_to_leave_a_checkpoint():
    times = {"train": (1800, 120), "lora_selection": (600, 30)}
    for step, (start, grace) in times.items():
        pod = step_pod(step)
        assert pod.schedule_timeout_seconds == pod.startup_timeout_seconds == start
        assert made(pod).spec.termination_grace_period_seconds == grace


def test_gpu_steps_ask_for_gpus_and_the_gpu_image_only_when_the_run_has_some():
    with_gpus = {"gpus": 2, "gpu_image": "registry/ml-cuda:1", "image": "registry/ml:1"}
    train = container_of("train", **with_gpus)
    assert (train.image, train.resources.limits["nvidia.com/gpu"]) == ("registry/ml-cuda:1", "2")
    other = container_of("lora_selection", **with_gpus)
    assert other.image == "registry/ml:1"
    for container in (other, container_of("train", gpus=0)):
        assert "nvidia.com/gpu" not in container.resources.limits


def test_a_queue_and_another_kind_of_gpu():
    pod = made("train", gpus=1, gpu_resource="amd.com/gpu", queue="ml", deadline_hours=20)
    assert pod.spec.containers[0].resources.limits["amd.com/gpu"] == "1"
    assert pod.metadata.labels["kueue.x-k8s.io/queue-name"] == "ml"
    waiting = step_pod("train")
    waiting.apply(PodConfig(queue="ml", deadline_hours=20).of(Size.TRAIN))
    assert waiting.schedule_timeout_seconds == 20 * 3600


def test_the_image_of_the_deployment_holds_until_a_run_names_another(monkeypatch):
    monkeypatch.setenv("TUNELINE_IMAGE", "registry/ml:release")
    assert container_of("deduplication").image == "registry/ml:release"
    assert container_of("deduplication", image="registry/ml:mine").image == "registry/ml:mine"


def test_a_pod_starts_from_the_chart_s_and_has_its_account(tmp_path, monkeypatch):
    batch = {"priorityClassName": "batch", "nodeSelector": {"pool": "ml"}}
    gpu = {"train": {"nodeSelector": {"pool": "gpu"}}}
    chart, _ = rendered(tmp_path, {**NAMED, "runs": {"podSpec": batch, "podSpecs": gpu}})
    data = {o["metadata"]["name"]: o["data"] for o in objects(chart) if "data" in o}
    for name, value in data["tuneline-airflow"].items():
        monkeypatch.setenv(name, value)
    assert data["tuneline-airflow"]["TUNELINE_POD_TEMPLATE"] == "/opt/tuneline/pods"
    for name, text in data["tuneline-pods"].items():
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("TUNELINE_POD_TEMPLATE", str(tmp_path))
    train = made("train").spec
    assert (train.priority_class_name, train.node_selector) == ("batch", {"pool": "gpu"})
    pod = made("deduplication")
    assert pod.metadata.namespace == "ml"
    assert pod.metadata.labels["tuneline.io/part"] == "step"
    spec = pod.spec
    assert (spec.service_account_name, spec.automount_service_account_token) == (
        "tuneline-steps",
        False,
    )
    assert (spec.priority_class_name, spec.node_selector) == ("batch", {"pool": "ml"})
    (container,) = spec.containers
    assert container.image == NAMED["image"]
    assert [e.secret_ref.name for e in container.env_from] == ["tuneline-store"]


@pytest.mark.parametrize("step", ["schema_validation", "train", "determinism"])
def test_a_pod_is_one_that_the_restricted_standard_admits(step):
    """Its rules: kubernetes.io/docs/concepts/security/pod-security-standards."""
    spec = made(step).spec
    assert spec.security_context.run_as_non_root is True
    assert spec.security_context.run_as_user == 50000
    assert spec.security_context.seccomp_profile.type == "RuntimeDefault"
    for container in spec.containers:
        security = container.security_context
        assert security.allow_privilege_escalation is False
        assert security.capabilities.drop == ["ALL"]
        assert security.capabilities.add is None
        assert security.read_only_root_filesystem is True
        assert security.privileged is None
        mounts = {m.mount_path: m.read_only for m in container.volume_mounts}
        assert mounts == {"/tmp": None, "/home/tuneline": None, "/var/cache/tuneline": None}
    allowed = {"empty_dir", "persistent_volume_claim"}
    for volume in spec.volumes:
        kinds = {kind for kind, value in volume.to_dict().items() if value is not None} - {"name"}
        assert kinds <= allowed
    assert not spec.host_network
    assert spec.automount_service_account_token is False


def test_the_volume_of_base_models_is_written_by_one_step_alone():
    for step in STEPS:
        spec = made(step.id, model_cache="bases-claim").spec
        claims = [v.persistent_volume_claim for v in spec.volumes if v.persistent_volume_claim]
        assert [claim.claim_name for claim in claims] == ["bases-claim"]
        container = spec.containers[0]
        mount = next(m for m in container.volume_mounts if m.name == "bases")
        assert mount.read_only is (step.id != "fetch_base")
        assert {e.name: e.value for e in container.env}["TUNELINE_BASES"] == mount.mount_path
    # Shared memory of several GPUs goes with it.
    mounts = container_of("train", gpus=2, model_cache="c").volume_mounts
    assert {"/dev/shm", "/tmp", "/var/lib/tuneline/bases"} <= {m.mount_path for m in mounts}


def test_pods_tell_steps_which_task_they_run_for_and_no_secret(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    monkeypatch.setenv("TUNELINE_POD_SECRETS", "store-credentials, tracking")
    pod = step_pod("deduplication")
    names = ("DAG_ID", "RUN_ID", "TASK_ID", "TRY_NUMBER", "LAST_TRY")
    told = {f"TUNELINE_AIRFLOW_{name}" for name in names}
    assert {entry.name for entry in pod.env_vars} == told | {"TUNELINE_CONTRACT"}
    shown = " ".join(str(getattr(pod, name)) for name in pod.template_fields)
    assert "hunter2" not in shown
    assert [e.secret_ref.name for e in pod.env_from] == ["store-credentials", "tracking"]


@pytest.mark.parametrize(
    ("value", "retry", "poll"),
    [("", 20, 5), ("1.5", 1.5, 1.5), *((v, 20, 5) for v in ("soon", "-1", "0", "nan", "inf"))],
)
def test_a_duration_that_is_not_a_number_is_logged_and_does_not_hide_the_dag(
    monkeypatch, caplog, value, retry, poll
):
    monkeypatch.setenv("TUNELINE_RETRY_SECONDS", value)
    monkeypatch.setenv("TUNELINE_POD_POLL_SECONDS", value)
    train = step_pod("train")
    assert train.retry_delay.total_seconds() == retry
    assert train.base_container_status_polling_interval == poll
    train.apply(PodConfig(nodes=2).of(Size.TRAIN))
    job = TrainingJob(task_id="train", step=train, nodes=2, run_uri=URI, try_number=1)
    assert job.job_poll_interval == poll
    logged = f"TUNELINE_RETRY_SECONDS is {value!r}, not a positive number" in caplog.text
    assert logged == (value not in ("", "1.5"))


@pytest.mark.parametrize("step", ["quantization_verification", "train"])
@pytest.mark.parametrize(
    "uri", [URI, "file:///x/runs/a", "file:///x/runs/" + "z" * 200, "file:///x/runs/___"]
)
def test_pod_names_are_labels(uri, step):
    name = pod_name(uri, step, 1)
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= 63
    assert step.replace("_", "-") in name


def test_a_pod_name_is_keyed_by_run_step_try_and_index():
    places = [
        (uri, step, number, index)
        for uri in ("file:///x/runs/a", "file:///y/runs/a")
        for step in ("train", "sweep")
        for number in (1, 11)
        # The eleventh index of the first try is not the first index of the eleventh.
        for index in (-1, 0, 1, 10)
    ]
    assert len({pod_name(*place) for place in places}) == len(places)
    assert pod_name(URI, "train", 1) == pod_name(URI, "train", 1, -1)


# The image of a pod, noted for lineage.

DIGEST = "registry/tuneline-ml@sha256:" + "d" * 64


def status_of(image="tuneline/ml:9", image_id="", **state):
    return k8s.V1ContainerStatus(
        name="base",
        image=image,
        image_id=image_id,
        ready=False,
        restart_count=0,
        state=k8s.V1ContainerState(**state),
    )


def ran(image_id):
    return k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(name="run-train-1"),
        status=k8s.V1PodStatus(container_statuses=[status_of("registry/ml:7", image_id)]),
    )


def test_the_digest_of_a_pods_image_is_noted(tmp_path, caplog):
    lab = Lab(tmp_path, {})
    for none in (None, ran(""), k8s.V1Pod(status=k8s.V1PodStatus())):
        note_image(none, lambda: lab.run.uri, "train", "base")
    note_image(ran(DIGEST), lambda: lab.run.uri, "train", "sidecar")
    assert image_of("train").find(lab.run) is None
    note_image(ran(DIGEST), lambda: lab.run.uri, "train", "base")
    found = image_of("train").find(lab.run)
    assert (found.image, found.image_id, found.pod) == ("registry/ml:7", DIGEST, "run-train-1")
    # A store that fails does not fail the step.
    note_image(ran(DIGEST), lambda: (tmp_path / "runs/gone").as_uri(), "train", "base")
    assert "is not noted for lineage" in caplog.text


# Why a pod waits, or ended.


def limited(status, **limits):
    resources = k8s.V1ResourceRequirements(limits=limits)
    spec = k8s.V1PodSpec(containers=[k8s.V1Container(name="base", resources=resources)])
    return k8s.V1Pod(spec=spec, status=status)


def unscheduled(message, **limits):
    condition = k8s.V1PodCondition(
        type="PodScheduled", status="False", reason="Unschedulable", message=message
    )
    return limited(k8s.V1PodStatus(phase="Pending", conditions=[condition]), **limits)


def waiting(reason, message=None):
    state = k8s.V1ContainerStateWaiting(reason=reason, message=message)
    statuses = [status_of(waiting=state)]
    return k8s.V1Pod(status=k8s.V1PodStatus(phase="Pending", container_statuses=statuses))


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (
            unscheduled(
                "0/3: Insufficient nvidia.com/gpu.", memory="8Gi", **{"nvidia.com/gpu": "2"}
            ),
            r"no node has 2 free GPUs \(0/3.*\); .*lower pods.gpus",
        ),
        (
            unscheduled("0/3 nodes: 3 Insufficient memory.", memory="900Gi"),
            "no node has 900Gi of free memory",
        ),
        (unscheduled("0/3 nodes: 3 had untolerated taint."), r"no node takes the pod \(0/3"),
        (
            waiting("ImagePullBackOff", "Back-off pulling\nimage"),
            r"the image tuneline/ml:9 can't be pulled \(ImagePullBackOff: Back-off .*pods\.image",
        ),
        (
            waiting("CreateContainerConfigError", 'secret "s3" not found'),
            'the container .*secret "s3" not found.*TUNELINE_POD_SECRETS',
        ),
        (waiting("Odd"), r"the container waits \(Odd: no message\)$"),
        (waiting("ContainerCreating"), None),
        (waiting("PodInitializing"), None),
        (k8s.V1Pod(status=k8s.V1PodStatus(phase="Running")), None),
    ],
)
def test_a_pod_that_waits_is_explained_in_one_sentence(pod, reason):
    found = pending_reason(pod)
    assert re.match(reason, found) if reason else found is None


def ended(code, why="Error", **status):
    state = k8s.V1ContainerStateTerminated(exit_code=code, reason=why)
    statuses = [status_of(terminated=state)]
    return limited(
        k8s.V1PodStatus(phase="Failed", container_statuses=statuses, **status), memory="3Gi"
    )


def test_a_kill_for_memory_differs_from_any_other():
    assert out_of_memory(ended(137, "OOMKilled"))
    assert memory_limit(ended(137, "OOMKilled")) == "3Gi"
    assert exit_code(ended(137)) == 137
    for other in (ended(137), None, SimpleNamespace(status=None)):
        assert not out_of_memory(other)


RUNNING = k8s.V1PodStatus(
    phase="Running", container_statuses=[status_of(running=k8s.V1ContainerStateRunning())]
)


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (ended(143, reason="DeadlineExceeded"), "user_error: the pod ran past its deadline"),
        (
            ended(137, reason="Evicted", message="node low on memory"),
            "retryable: the cluster ended the pod (Evicted: node low on memory)",
        ),
        # Nothing of one that was deleted is left but what was seen last.
        (k8s.V1Pod(status=RUNNING), "retryable: the pod was deleted while it was running"),
        (ended(1), None),
    ],
)
def test_a_pod_that_the_cluster_ended_has_its_reason(pod, reason):
    found = ending_reason(pod)
    assert found.startswith(reason) if reason else found is None


# Whether it is tried again.

FAILED = "Pod tl-1 returned a failure."


@pytest.mark.parametrize(
    ("message", "pod", "action"),
    [
        (f"{FAILED}\nuser_error: the reason", None, RetryAction.FAIL),
        (f"{FAILED}\nerror: the reason", None, RetryAction.FAIL),
        (f"{FAILED}\nretryable: the reason", None, RetryAction.RETRY),
        # Without a message the exit code of a broken step is final.
        *((FAILED, ended(code), RetryAction.FAIL) for code in (1, 2)),
        # What was killed or never started is tried again.
        *((FAILED, ended(code), RetryAction.DEFAULT) for code in (75, 137, 143)),
        (FAILED, k8s.V1Pod(status=RUNNING), RetryAction.DEFAULT),
        # In the middle of a line it is no reason.
        (f"{FAILED}\nsaid user_error: once", ended(137), RetryAction.DEFAULT),
        ("Pod took too long to start", None, RetryAction.DEFAULT),
    ],
)
def test_the_reason_that_a_pod_left_decides_about_another_try(message, pod, action):
    context = {"task": SimpleNamespace(remote_pod=pod)}
    policy = StepRetryPolicy.deserialize(StepRetryPolicy().serialize())
    decision = policy.evaluate(AirflowException(message), 1, 2, context)
    assert decision.action == action
    if "the reason" in message:
        assert decision.reason == "the reason"


def test_worker_tasks_retry_only_when_the_surroundings_failed():
    for error, action in (
        (RetryableError("s3"), RetryAction.RETRY),
        (UserError("typo"), RetryAction.FAIL),
        (KeyError("bug"), RetryAction.FAIL),
    ):
        assert worker_retry_policy.evaluate(error, 1, 2).action == action


def test_an_asset_s_event_names_the_run_that_made_it(tmp_path, monkeypatch):
    lab = Lab(tmp_path, {})
    monkeypatch.setattr(StepPod, "carry_out", lambda *_: None)
    pulled = prepared_run(lab.run.uri, lab.run.config.pods)

    def pull(task_ids, key="return_value"):
        return pulled[key]

    asset = Asset("released_model")
    events = {asset: SimpleNamespace(extra={})}
    pod = StepPod(task_id="promote", command=["true"], outlets=[asset])
    pod.execute({"ti": SimpleNamespace(xcom_pull=pull), "outlet_events": events})
    told = {"run": lab.run.uri, "model": lab.run.config.name, "profile": "laptop"}
    assert events[asset].extra == told
