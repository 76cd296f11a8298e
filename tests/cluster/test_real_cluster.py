"""What only a real cluster shows: its admission, its pods' deaths, and one copy of the base.

The tests are one story on one run and stand in its order.
"""

from __future__ import annotations

import threading

import pytest
from airflow.sdk.exceptions import AirflowException
from kubernetes import client
from tests.lab.waiting import wait_for

from tuneline.artifacts.training import BASE, TRAINED
from tuneline.catalogue import DATA_ORDER

# Steps of the data phase that read the base model: its tokenizer, no weights.
USERS = {"schema_validation", "token_length_audit", "final_audit"}

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


def test_the_namespace_refuses_a_pod_that_is_not_restricted(cluster):
    container = client.V1Container(name="base", image="busybox", command=["true"])
    pod = client.V1Pod(
        metadata=client.V1ObjectMeta(name="loose"), spec=client.V1PodSpec(containers=[container])
    )
    with pytest.raises(client.ApiException, match="violates PodSecurity"):
        cluster.core.create_namespaced_pod(cluster.namespace, pod)


def test_the_base_is_fetched_by_the_first_pod_and_by_no_other(cluster, run):
    log = cluster.carry_out(run, "fetch_base")
    assert "[fetch_base]" in log
    stored = BASE.find(run)
    assert stored.place.startswith(run.store.uri)
    for step in (*DATA_ORDER, "final_audit"):
        log = cluster.carry_out(run, step)
        assert "fetching" not in log
        assert f"[{step}] taking the base model" in log or step not in USERS, log
    assert run.entry("final_audit").measurements


def test_training_whose_pod_is_deleted_goes_on_from_its_checkpoint(cluster, run):
    for step in ("lora_selection", "gradient_accumulation"):
        cluster.carry_out(run, step)
    failures = []

    def first_try():
        try:
            cluster.carry_out(run, "train")
        except AirflowException as error:
            failures.append(str(error))

    trying = threading.Thread(target=first_try)
    trying.start()
    try:
        wait_for(
            lambda: list(run.store.keys(run.key("work", "train"))), "a checkpoint", 0.5, seconds=600
        )
        (pod,) = cluster.pods("train")
        cluster.core.delete_namespaced_pod(pod.metadata.name, cluster.namespace)
    finally:
        trying.join(timeout=300)
    assert len(failures) == 1
    assert "retryable" in failures[0]
    log = cluster.carry_out(run, "train", try_number=2)
    assert "resuming from the checkpoint of step" in log
    trained = TRAINED.find(run)
    assert trained.resumed_from
    assert trained.steps == run.config.training.max_steps
