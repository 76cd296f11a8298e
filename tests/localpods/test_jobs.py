"""Jobs (batch/v1)."""

import json
from typing import Any

import pytest
from kubernetes import client
from tests.lab.pods import NAMESPACE, Api, Server, pod_body
from tests.lab.waiting import wait_for

INDEXED = {"completionMode": "Indexed", "completions": 2, "parallelism": 2}


def create_job(api: Api, name: str, script: str, *, pod: dict[str, Any] | None = None, **spec: Any):
    template = pod_body("ignored", script, **(pod or {}))
    body = {"metadata": {"name": name}, "spec": {"template": template, **spec}}
    return api.batch.create_namespaced_job(NAMESPACE, body)


def pods_of(api: Api, job: str) -> list[client.V1Pod]:
    return api.core.list_namespaced_pod(NAMESPACE, label_selector=f"job-name={job}").items


def wait_end(api: Api, name: str) -> client.V1Job:
    def ended() -> client.V1Job | None:
        job = api.batch.read_namespaced_job_status(name, NAMESPACE)
        return job if job.status.conditions else None

    return wait_for(ended, what=f"the end of job {name}")


def test_job_completes(api: Api) -> None:
    created = create_job(api, "plain", "echo hi", pod={"labels": {"mine": "yes"}})
    # Its pod is there with the answer: the operator looks at once.
    pods = pods_of(api, "plain")
    assert len(pods) == 1
    assert pods[0].metadata.labels["mine"] == "yes"
    assert pods[0].metadata.owner_references[0].uid == created.metadata.uid
    job = wait_end(api, "plain")
    assert job.status.conditions[0].type == "Complete"
    assert (job.status.succeeded, job.status.failed) == (1, None)
    assert job.status.completion_time is not None
    assert api.log(pods[0].metadata.name) == "hi\n"
    api.batch.patch_namespaced_job("plain", NAMESPACE, {"metadata": {"labels": {"found": "yes"}}})
    found = api.batch.list_job_for_all_namespaces(label_selector="found=yes").items
    assert [job.metadata.name for job in found] == ["plain"]


def test_indexed_job_gives_each_pod_its_index(api: Api) -> None:
    script = "echo $JOB_COMPLETION_INDEX $HOSTNAME $MASTER $0; sleep 0.3"
    label = {"fieldRef": {"fieldPath": "metadata.labels['job-name']"}}
    master = {"name": "MASTER", "value": "$(JOB)-0.workers.ml.svc:29500"}
    env = [{"name": "JOB", "valueFrom": label}, master]
    pod = {"container_env": env, "container_args": ["--rdzv=$(JOB)-0"]}
    create_job(api, "indexed", script, pod=pod, **{**INDEXED, "completions": 4})
    assert len(pods_of(api, "indexed")) == 2
    job = wait_end(api, "indexed")
    assert job.status.completed_indexes == "0-3"
    assert job.status.succeeded == 4
    logs = sorted(api.log(pod.metadata.name) for pod in pods_of(api, "indexed"))
    assert logs == [f"{i} indexed-{i} 127.0.0.1:29500 --rdzv=127.0.0.1\n" for i in range(4)]


def test_failed_pods_are_replaced(api: Api, tmp_path: Any) -> None:
    # Fails once, then works.
    script = f"if mkdir {tmp_path}/once; then exit 3; fi"
    create_job(api, "flaky", script, backoffLimit=2)
    job = wait_end(api, "flaky")
    assert job.status.conditions[0].type == "Complete"
    assert (job.status.succeeded, job.status.failed) == (1, 1)
    assert sorted(pod.status.phase for pod in pods_of(api, "flaky")) == ["Failed", "Succeeded"]


@pytest.mark.parametrize(
    ("name", "script", "spec", "reason", "left"),
    [
        (
            "hopeless",
            "test $JOB_COMPLETION_INDEX = 0 && exit 1; sleep 600",
            {**INDEXED, "backoffLimit": 0},
            "BackoffLimitExceeded",
            1,
        ),
        ("slow", "sleep 600", {"activeDeadlineSeconds": 1}, "DeadlineExceeded", 0),
    ],
)
def test_a_job_that_fails_ends_its_other_pods(
    api: Api, name: str, script: str, spec: dict[str, Any], reason: str, left: int
) -> None:
    create_job(api, name, script, **spec)
    condition = wait_end(api, name).status.conditions[0]
    assert (condition.type, condition.reason) == ("Failed", reason)
    wait_for(lambda: len(pods_of(api, name)) == left, what="the end of the other pods")


@pytest.mark.parametrize("policy", ["Foreground", "Background"])
def test_deleted_job_takes_its_pods_along_and_orphans_none(api: Api, policy: str) -> None:
    name = f"deleted-{policy.lower()}"
    create_job(api, name, "sleep 600")
    with pytest.raises(client.ApiException, match=r"^\(400\)"):
        api.batch.delete_namespaced_job(name, NAMESPACE, propagation_policy="Orphan")
    api.batch.delete_namespaced_job(
        name, NAMESPACE, propagation_policy=policy, grace_period_seconds=0
    )
    wait_for(lambda: pods_of(api, name) == [], what="the end of its pods")
    with pytest.raises(client.ApiException, match=r"^\(404\)"):
        wait_for(lambda: not api.batch.read_namespaced_job(name, NAMESPACE), what="its end")


def test_deleted_pod_counts_as_failed_before_it_has_ended(api: Api, tmp_path: Any) -> None:
    # Its replacement succeeds meanwhile, which must not conclude the job without the failure.
    script = f"if mkdir {tmp_path}/first; then trap '' TERM; touch {tmp_path}/up; sleep 600; fi"
    create_job(api, "slow-eviction", script)
    pod = pods_of(api, "slow-eviction")[0].metadata.name
    wait_for((tmp_path / "up").exists, what="its work")
    api.core.delete_namespaced_pod(pod, NAMESPACE, grace_period_seconds=4)
    job = wait_end(api, "slow-eviction")
    assert api.exists(pod)
    assert (job.status.succeeded, job.status.failed) == (1, 1)
    api.core.delete_namespaced_pod(pod, NAMESPACE, grace_period_seconds=0)


def test_job_of_a_killed_server_has_failed(own_server: Server) -> None:
    api = Api(own_server)
    create_job(api, "lost", "sleep 600", **INDEXED)
    own_server.kill()
    own_server.start()
    condition = wait_end(api, "lost").status.conditions[0]
    assert (condition.type, condition.reason) == ("Failed", "NodeLost")
    assert [pod.status.phase for pod in pods_of(api, "lost")] == ["Failed", "Failed"]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"completionMode": "Indexed"}, "spec.completions"),
        ({"suspend": True}, "spec.suspend"),
        ({"backoffLimit": -1}, "spec.backoffLimit"),
        ({"podFailurePolicy": {"rules": []}}, "spec.podFailurePolicy"),
        ({"pod": {"restartPolicy": "OnFailure"}}, "spec.template.spec.restartPolicy"),
        ({"pod": {"container_name": "B"}}, "spec.template.spec.containers[0].name"),
    ],
)
def test_wrong_job_is_refused(api: Api, spec: dict[str, Any], field: str) -> None:
    with pytest.raises(client.ApiException) as caught:
        create_job(api, "wrong", "true", **spec)
    assert caught.value.status == 422
    assert field in json.loads(caught.value.body)["message"]
