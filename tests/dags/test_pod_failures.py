"""Pods that don't start or are killed, on a real server: what the task's log and error say."""

import json
import shlex
from pathlib import Path

import pytest
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowException
from tests.lab import tasks as task_lab
from tests.lab.ml_environment import ML_PYTHON, planned_runs
from tests.lab.pods import IMAGE
from tests.lab.runs import Lab
from tests.lab.tasks import connect, prepared_run

from tuneline.config import PodConfig
from tuneline.run import Run
from tuneline.training.resources.out_of_memory import MemoryNotes
from tuneline_airflow.failures import StepRetryPolicy
from tuneline_airflow.pods import StepPod


@pytest.fixture
def connected(server, monkeypatch):
    connect(server, monkeypatch, "default")


@pytest.fixture
def run(tmp_path):
    return Lab(tmp_path, {"training": {"effective_batch": 8}}).run


def context_of(run, task_id, **pods):
    prepared = prepared_run(run.uri, PodConfig(**{"image": IMAGE, **pods}))
    return task_lab.context_of(task_id, prepared=prepared)


def step(task_id, script, **kwargs):
    pod = StepPod(task_id=task_id, command=[], **kwargs)
    pod.cmds = ["bash", "-c", script]
    pod.env_vars = []
    return pod


def failure(pod, context):
    with pytest.raises(AirflowException) as caught:
        pod.execute(context)
    decision = StepRetryPolicy().evaluate(caught.value, 1, 2, {**context, "task": pod})
    return str(caught.value), decision


def test_a_pod_that_waits_for_a_gpu_says_so_while_it_waits_and_at_the_end(connected, run, capfd):
    pod = step("train", "true", gpus=True, schedule_timeout_seconds=2)
    error, decision = failure(pod, context_of(run, "train", gpus=64, gpu_image=IMAGE))
    output = capfd.readouterr().out.splitlines()
    first = next(
        i for i, line in enumerate(output) if "pending for 0 s: no node has 64 free" in line
    )
    assert "Insufficient nvidia.com/gpu" in output[first]
    # The UI folds what the provider logs until its group is closed.
    assert "::endgroup::" in output[first - 1]
    # It went on waiting after that.
    assert any("::endgroup::" in line for line in output[first + 1 :])
    assert "the pod did not start: no node has 64 free GPUs" in error
    assert decision.action == RetryAction.RETRY
    assert decision.reason.startswith("the pod did not start: no node has 64 free GPUs")


def test_an_image_that_is_missing_ends_at_once_in_a_sentence(connected, run):
    pod = step("deduplication", "true")
    context = context_of(run, "deduplication", image="unknown:1")
    error, decision = failure(pod, context)
    assert "the image unknown:1 can't be pulled" in error
    assert "pods.image" in decision.reason


EAT = "python3 -c 'import time; held = bytearray(300_000_000); time.sleep(30)'"


def test_training_that_is_killed_for_memory_is_noted_and_tried_again_smaller(connected, run):
    MemoryNotes(run).trying("train", 8)
    pod = step("train", EAT)
    error, decision = failure(pod, context_of(run, "train", memory="100Mi"))
    assert "train ran out of memory with a micro-batch of 8, the pod's limit of 100Mi" in error
    assert decision.action == RetryAction.RETRY
    assert "the next try takes 4 rows × 2 accumulated" in decision.reason
    [noted] = MemoryNotes(run).failures()
    assert (noted.step, noted.micro_batch, noted.how) == ("train", 8, "OOMKilled")


def test_training_that_is_killed_with_the_smallest_micro_batch_is_not_tried_again(connected, run):
    MemoryNotes(run).trying("train", 1)
    error, decision = failure(step("train", EAT), context_of(run, "train", memory="100Mi"))
    assert decision.action == RetryAction.FAIL
    assert "there is no smaller one: set training.gradient_checkpointing: true" in error


@pytest.mark.stack
@pytest.mark.long
def test_real_training_goes_on_with_a_smaller_micro_batch(connected, tmp_path):
    """The pod's limit is real; the kill comes in the middle, the next try resumes and ends."""
    script = Path(__file__).with_name("greedy_training.py")
    [uri] = planned_runs(tmp_path, {"training": {"epochs": 2}}, micro_batch=4)
    run = Run.open(uri)
    train = shlex.join([str(ML_PYTHON), str(script), run.uri])
    context = context_of(run, "train", memory="2Gi")
    error, decision = failure(step("train", train), context)
    assert decision.action == RetryAction.RETRY, error
    assert "train ran out of memory with a micro-batch of 4, the pod's limit of 2Gi" in error
    context["ti"].try_number = 2
    step("train", train).execute(context)
    document = json.loads(run.store.get_bytes(run.step_key("train", "run.json")))
    assert document["steps"] == document["steps_planned"] == 9
    assert document["resumed_from"] == 3
    resources = document["resources"]
    assert (resources["micro_batch"], resources["accumulation"]) == (2, 4)
    assert [f["how"] for f in resources["out_of_memory"]] == ["OOMKilled"]


def test_another_step_that_is_killed_for_memory_names_the_setting(connected, run):
    error, decision = failure(step("lineage", EAT), context_of(run, "lineage", memory="100Mi"))
    assert "lineage ran out of memory, the pod's limit of 100Mi was reached" in error
    assert decision.action == RetryAction.RETRY
    assert MemoryNotes(run).failures() == []


def test_a_step_of_its_own_words_keeps_them(connected, run):
    script = "echo 'user_error: row 7 has no text' > $TERMINATION_MESSAGE_PATH; exit 2"
    error, decision = failure(step("lineage", script), context_of(run, "lineage"))
    assert decision.action == RetryAction.FAIL
    assert decision.reason == "row 7 has no text"
    assert "ran out of memory" not in error
