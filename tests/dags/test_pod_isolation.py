"""Pods fit a shared cluster: they state their size, have no privileges and share one base model."""

import pytest

from tuneline.catalogue import STEPS, get_step
from tuneline.config import PodConfig
from tuneline_airflow.pods import pod_name
from tuneline_airflow.steps import pod_of
from tuneline_airflow.training import TrainingJob

URI = "s3://bucket/prefix/runs/r1"


def made(step_id, **pods):
    """The pod that the operator asks the cluster for."""
    pod = pod_of(get_step(step_id))
    pod.apply(PodConfig(**pods))
    pod.name = pod_name(URI, step_id, 1)
    return pod.build_pod_request_obj(dry_run=True)


@pytest.mark.parametrize("step", [step.id for step in STEPS])
def test_every_pod_is_one_that_the_restricted_standard_admits(step):
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
    allowed = {"empty_dir", "persistent_volume_claim"}
    for volume in spec.volumes:
        kinds = {kind for kind, value in volume.to_dict().items() if value is not None} - {"name"}
        assert kinds <= allowed
    assert not spec.host_network
    assert spec.automount_service_account_token is False


def test_requests_and_limits_are_those_of_the_run():
    resources = made("lora_selection", memory="3Gi", cpu="500m").spec.containers[0].resources
    assert resources.requests == {"memory": "3Gi", "cpu": "500m"}
    assert resources.limits == {"memory": "3Gi", "cpu": "500m"}
    gpu = made("train", gpus=1).spec.containers[0].resources
    assert gpu.limits["nvidia.com/gpu"] == "1"


def test_another_user_owns_its_volumes():
    security = made("train", user=1234).spec.security_context
    assert (security.run_as_user, security.fs_group) == (1234, 1234)


def test_a_pod_may_write_where_programs_expect_it():
    mounts = {m.mount_path: m.read_only for m in made("train").spec.containers[0].volume_mounts}
    assert mounts == {"/tmp": None, "/home/tuneline": None, "/var/cache/tuneline": None}


def test_the_volume_of_base_models_is_written_by_one_step_alone():
    for step in STEPS:
        spec = made(step.id, model_cache="bases-claim").spec
        claims = [v.persistent_volume_claim for v in spec.volumes if v.persistent_volume_claim]
        assert [claim.claim_name for claim in claims] == ["bases-claim"]
        container = spec.containers[0]
        mount = next(m for m in container.volume_mounts if m.name == "bases")
        assert mount.read_only is (step.id != "fetch_base")
        told = {e.name: e.value for e in container.env}["TUNELINE_BASES"]
        assert told == mount.mount_path
    without = made("train").spec
    assert not any(v.persistent_volume_claim for v in without.volumes)
    assert "TUNELINE_BASES" not in {entry.name for entry in without.containers[0].env}


def test_shared_memory_of_several_gpus_stands_beside_the_other_volumes():
    mounts = made("train", gpus=2, model_cache="c").spec.containers[0].volume_mounts
    assert {"/dev/shm", "/tmp", "/var/lib/tuneline/bases"} <= {m.mount_path for m in mounts}


@pytest.mark.parametrize(("told", "seconds"), [(None, 5), ("0.5", 0.5)])
def test_a_cluster_is_asked_every_few_seconds(monkeypatch, told, seconds):
    monkeypatch.delenv("TUNELINE_POD_POLL_SECONDS", raising=False)
    if told:
        monkeypatch.setenv("TUNELINE_POD_POLL_SECONDS", told)
    pod = pod_of(get_step("lora_selection"))
    assert pod.startup_check_interval_seconds == seconds
    assert pod.base_container_status_polling_interval == seconds
    train = pod_of(get_step("train"))
    train.apply(PodConfig(nodes=2))
    job = TrainingJob(task_id="train", step=train, nodes=2, run_uri=URI, try_number=1)
    assert job.job_poll_interval == seconds
