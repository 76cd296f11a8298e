"""A pod that waits, or that was ended, is explained in one sentence."""

import re
from types import SimpleNamespace

import pytest
from kubernetes.client import models as k8s

from tuneline_airflow.failures import (
    ending_reason,
    exit_code,
    memory_limit,
    out_of_memory,
    pending_reason,
)


def unscheduled(message, **limits):
    resources = k8s.V1ResourceRequirements(limits=limits or {"memory": "8Gi"})
    return k8s.V1Pod(
        spec=k8s.V1PodSpec(containers=[k8s.V1Container(name="base", resources=resources)]),
        status=k8s.V1PodStatus(
            phase="Pending",
            conditions=[
                k8s.V1PodCondition(
                    type="PodScheduled", status="False", reason="Unschedulable", message=message
                )
            ],
        ),
    )


def container(image="tuneline/ml:9", **state):
    return k8s.V1ContainerStatus(
        name="base",
        image=image,
        image_id="",
        ready=False,
        restart_count=0,
        state=k8s.V1ContainerState(**state),
    )


def waiting(reason, message=None):
    state = k8s.V1ContainerStateWaiting(reason=reason, message=message)
    return k8s.V1Pod(
        status=k8s.V1PodStatus(phase="Pending", container_statuses=[container(waiting=state)])
    )


@pytest.mark.parametrize(
    ("message", "limits", "reason"),
    [
        (
            "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
            {"memory": "8Gi", "nvidia.com/gpu": "2"},
            r"no node has 2 free GPUs \(0/3 .*\); .*lower pods.gpus",
        ),
        ("0/3 nodes: 3 Insufficient memory.", {"memory": "900Gi"}, "no node has 900Gi of free mem"),
        ("0/3 nodes: 3 had untolerated taint.", {"memory": "8Gi"}, r"no node takes the pod \(0/3"),
    ],
)
def test_a_pod_without_a_node_says_what_is_missing(message, limits, reason):
    assert re.match(reason, pending_reason(unscheduled(message, **limits)))


def test_an_image_that_cannot_be_pulled_names_itself_and_the_settings():
    reason = pending_reason(waiting("ImagePullBackOff", "Back-off pulling\nimage"))
    assert reason.startswith("the image tuneline/ml:9 can't be pulled (ImagePullBackOff: Back-off")
    assert "pods.image" in reason
    assert "\n" not in reason


def test_a_missing_secret_and_unknown_reasons_are_named():
    reason = pending_reason(waiting("CreateContainerConfigError", 'secret "s3" not found'))
    assert 'secret "s3" not found' in reason
    assert "TUNELINE_POD_SECRETS" in reason
    assert pending_reason(waiting("Odd")) == "the container waits (Odd: no message)"


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_a_pod_on_its_way_has_no_reason(reason):
    assert pending_reason(waiting(reason)) is None
    assert pending_reason(k8s.V1Pod(status=k8s.V1PodStatus(phase="Running"))) is None


def ended(code, why, **status):
    state = k8s.V1ContainerStateTerminated(exit_code=code, reason=why)
    pod = unscheduled("", memory="3Gi")
    pod.status = k8s.V1PodStatus(
        phase="Failed", container_statuses=[container(terminated=state)], **status
    )
    return pod


def test_a_kill_for_memory_differs_from_any_other():
    assert out_of_memory(ended(137, "OOMKilled"))
    assert memory_limit(ended(137, "OOMKilled")) == "3Gi"
    assert not out_of_memory(ended(137, "Error"))
    assert exit_code(ended(137, "Error")) == 137
    assert not out_of_memory(None)
    assert not out_of_memory(SimpleNamespace(status=None))


def test_a_pod_that_the_cluster_ended_has_its_reason():
    late = ending_reason(ended(143, "Error", reason="DeadlineExceeded"))
    assert late.startswith("user_error: the pod ran past its deadline")
    gone = ending_reason(ended(137, "Error", reason="Evicted", message="node low on memory"))
    assert gone == "retryable: the cluster ended the pod (Evicted: node low on memory)"
    assert ending_reason(ended(1, "Error")) is None


def test_a_pod_that_was_deleted_at_work_is_worth_another_try():
    """Nothing of it is left but what was seen last."""
    last_seen = k8s.V1Pod(
        status=k8s.V1PodStatus(
            phase="Running", container_statuses=[container(running=k8s.V1ContainerStateRunning())]
        )
    )
    assert ending_reason(last_seen) == "retryable: the pod was deleted while it was running"
    assert ending_reason(ended(1, "Error")) is None
