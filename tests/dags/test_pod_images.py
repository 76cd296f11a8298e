"""The image of a step's pod is noted beside its run, as the cluster reported it."""

from kubernetes.client import models as k8s
from tests.lab.runs import Lab

from tuneline.artifacts.governance import image_of
from tuneline_airflow.pods import note_image

DIGEST = "registry/tuneline-ml@sha256:" + "d" * 64


def pod(image_id):
    status = k8s.V1ContainerStatus(
        name="base",
        image="registry/tuneline-ml:7",
        image_id=image_id,
        ready=False,
        restart_count=0,
    )
    return k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(name="run-train-1"),
        status=k8s.V1PodStatus(phase="Succeeded", container_statuses=[status]),
    )


def test_the_digest_is_noted(tmp_path):
    lab = Lab(tmp_path, {})
    note_image(pod(DIGEST), lambda: lab.run.uri, "train", "base")
    found = image_of("train").find(lab.run)
    assert (found.image, found.image_id) == ("registry/tuneline-ml:7", DIGEST)
    assert found.pod == "run-train-1"


def test_nothing_is_noted_of_a_pod_that_never_had_an_image(tmp_path):
    lab = Lab(tmp_path, {})
    for none in (None, pod(""), k8s.V1Pod(status=k8s.V1PodStatus())):
        note_image(none, lambda: lab.run.uri, "train", "base")
    note_image(pod(DIGEST), lambda: lab.run.uri, "train", "sidecar")
    assert image_of("train").find(lab.run) is None


def test_a_store_that_fails_does_not_fail_the_step(tmp_path, caplog):
    note_image(pod(DIGEST), lambda: (tmp_path / "runs/gone").as_uri(), "train", "base")
    assert "is not noted for lineage" in caplog.text
