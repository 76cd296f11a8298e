"""Pods that don't start, are killed or fail: what the log and the error say, what stops the run."""

import json
import shlex
from pathlib import Path

import pytest
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from tests.lab import tasks as task_lab
from tests.lab.dag_runs import run_dag
from tests.lab.ml_environment import ML_PYTHON, planned_runs
from tests.lab.pods import IMAGE, Server
from tests.lab.runs import Lab
from tests.lab.tasks import connect, connection, prepared_run

from tuneline import verdicts
from tuneline.airflow.failures import StepRetryPolicy, judge
from tuneline.airflow.pods import StepPod
from tuneline.catalogue import Size
from tuneline.config import PodConfig
from tuneline.errors import RetryableError
from tuneline.evidence import Verdict, measure
from tuneline.run import Run
from tuneline.step import leave_killed
from tuneline.training.resources.out_of_memory import MemoryNotes
from tuneline.verdicts import status

LAST = 3


@pytest.fixture
def connected(server, monkeypatch, either_way):
    connect(server, monkeypatch, "default")


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, {"training": {"effective_batch": 8}})


@pytest.fixture
def run(lab):
    return lab.run


def context_of(run, task_id, try_number=1, **pods):
    prepared = prepared_run(run.uri, PodConfig(**{"image": IMAGE, **pods}))
    return task_lab.context_of(task_id, try_number=try_number, prepared=prepared)


def step(task_id, script, **kwargs):
    pod = StepPod(task_id=task_id, command=[], **kwargs)
    pod.cmds = ["bash", "-c", script]
    pod.env_vars = []
    return pod


def carry_out(run, task_id, script, try_number=LAST, image=IMAGE, **options):
    context = context_of(run, task_id, try_number, image=image, memory="100Mi")
    task_lab.carry_out(step(task_id, script, **options), context)


EAT = "python3 -c 'import time; held = bytearray(300_000_000); time.sleep(30)'"


def failure(pod, context):
    with pytest.raises(AirflowException) as caught:
        task_lab.carry_out(pod, context)
    decision = StepRetryPolicy().evaluate(caught.value, 1, 2, {**context, "task": pod})
    return str(caught.value), decision


def test_a_pod_that_waits_for_a_gpu_says_so_while_it_waits_and_at_the_end(connected, run, capfd):
    pod = step("train", "true", size=Size.TRAIN, schedule_timeout_seconds=2)
    error, decision = failure(pod, context_of(run, "train", gpus=64, gpu_image=IMAGE))
    output = capfd.readouterr().out.splitlines()
    if pod.deferrable:
        assert any("FailedScheduling" in line and "nvidia.com/gpu" in line for line in output)
    else:
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


def test_training_that_is_killed_for_memory_is_noted_and_tried_again_smaller(connected, run):
    MemoryNotes(run).trying("train", 8)
    pod = step("train", EAT)
    error, decision = failure(pod, context_of(run, "train", memory="100Mi"))
    assert "train ran out of memory with a micro-batch of 8, the pod's limit of 100Mi" in error
    assert decision.action == RetryAction.RETRY
    assert "the next try takes 4 rows × 2 accumulated" in decision.reason
    [noted] = MemoryNotes(run).failures()
    assert (noted.step, noted.micro_batch, noted.how) == ("train", 8, "OOMKilled")
    # With the smallest micro-batch there is nothing left to try.
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


def test_a_pod_that_runs_past_its_deadline_names_the_setting(connected, run):
    context = context_of(run, "lineage", deadline_hours=1.1 / 3600)
    error, decision = failure(step("lineage", "sleep 60"), context)
    assert decision.action == RetryAction.FAIL
    assert "the pod ran past its deadline" in error


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


SAYS = "echo '{}' > $TERMINATION_MESSAGE_PATH; exit {}"
# Each end of a pod, and what the evidence says about it.
ENDS = {
    "out of memory": (EAT, "ran out of memory, the pod's limit of 100Mi was reached"),
    # Kubernetes makes one dollar sign of two, so that bash can't name itself.
    "killed": (
        "python3 -c 'import os; os.kill(os.getpid(), 9)'",
        "its pod ended with exit code 137 and left no reason",
    ),
    "broke": ("exit 1", "its pod ended with exit code 1 and left no reason"),
    "surroundings": (SAYS.format("retryable: s3 is away", 75), "s3 is away"),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_run_goes_on_after_the_last_try_of_a_recommended_item(connected, run, end):
    script, said = ENDS[end]
    carry_out(run, "determinism", script)
    row = status(run, "determinism")
    assert (row.verdict, row.stops_release) == ("fail", False)
    assert said in row.summary
    assert run.find_evidence("determinism").airflow["try_number"] == LAST


KILLED = ENDS["killed"][0]


@pytest.mark.parametrize(
    ("task_id", "script", "try_number", "left"),
    [
        # What may pass is tried again first.
        ("determinism", ENDS["surroundings"][0], LAST - 1, None),
        # A critical item, and a helper step.
        ("latency_benchmark", KILLED, LAST, None),
        ("latency_benchmark", "exit 1", LAST, None),
        ("build_engine", "exit 1", LAST, None),
        # A run that is wrong stops an optional item too.
        ("cold_start", SAYS.format("user_error: this image speaks contract 9", 2), LAST, None),
        # What later steps need, which the last try reads.
        ("lora_selection", KILLED, LAST - 1, "exit code 137"),
        ("production_quantization", KILLED, LAST - 1, "exit code 137"),
    ],
)
def test_other_ends_fail_the_task(connected, run, task_id, script, try_number, left):
    with pytest.raises(AirflowException):
        carry_out(run, task_id, script, try_number)
    evidence = run.find_evidence(task_id)
    assert left in evidence.summary if left else evidence is None


def test_a_pod_that_never_starts_is_a_failed_item(connected, run):
    carry_out(run, "cold_start", "true", size=Size.TRAIN, image="gone:1")
    assert "did not start" in status(run, "cold_start").summary


def test_what_the_step_itself_said_stands(connected, run):
    """Its own evidence has its partial results, and the same try."""
    task = {
        "dag_id": "pipeline",
        "run_id": "manual__1",
        "task_id": "determinism",
        "try_number": LAST,
    }
    leave_killed(run.uri, "determinism", "said by the step", task)
    carry_out(run, "determinism", ENDS["surroundings"][0])
    assert "said by the step" in status(run, "determinism").summary
    # That of an earlier run of the task does not.
    leave_killed(run.uri, "determinism", "said by the step", {**task, "try_number": 1})
    carry_out(run, "determinism", ENDS["surroundings"][0])
    assert "s3 is away" in status(run, "determinism").summary


def test_a_failed_verdict_fails_its_own_task_for_good_and_a_clear_runs_the_pod_again(
    connected, lab, tmp_path
):
    ran = tmp_path / "ran"

    def measured(seconds, try_number):
        lab.leave("latency_benchmark", {}, [measure("ttft", seconds, "s", "<=", 1)])
        script, judged = f"echo try >> {ran}", ["latency_benchmark"]
        carry_out(lab.run, "latency_benchmark", script, try_number, judged=judged)

    # Airflow gives such a task no other try, whatever its retries.
    said = r"latency_benchmark \(critical\): fail: ttft is 9, must be <= 1 s"
    with pytest.raises(AirflowFailException, match=said):
        measured(9, 1)
    measured(0.5, 2)
    assert ran.read_text().split() == ["try", "try"]


# Stands for the command line in the image: one item breaks, one is killed, one measures.
TUNELINE = """#!/bin/sh
case "$2" in
  cold_start) exit 1 ;;
  fallback) kill -9 $$ ;;
esac
"""


@pytest.mark.stack
@pytest.mark.parametrize(
    "critical",
    ["fails", *(pytest.param(how, marks=pytest.mark.long) for how in ("measures", "breaks"))],
)
def test_airflow_goes_on_after_what_is_not_critical(tmp_path, critical):
    tools = tmp_path / "image"
    tools.mkdir()
    script = TUNELINE.replace("esac", "  health_checks) exit 1 ;;\nesac")
    (tools / "tuneline").write_text(script if critical == "breaks" else TUNELINE)
    (tools / "tuneline").chmod(0o755)
    server = Server(tmp_path)
    server.images.write_text(json.dumps({"images": {IMAGE: {"path_prepend": [str(tools)]}}}))
    server.start()
    try:
        lab = Lab(tmp_path, {"pods": {"memory": "64Mi"}})
        faults = measure("faults", int(critical == "fails"), "faults", "==", 0)
        lab.leave("health_checks", {}, [faults])
        states = run_dag(
            Path(__file__).parent / "dags" / "errors_dag.py",
            tmp_path / "airflow",
            AIRFLOW_CONN_KUBERNETES_DEFAULT=connection(server, "default"),
            RUN_URI=lab.run.uri,
            TUNELINE_POD_POLL_SECONDS="0.5",
        )
    finally:
        server.stop()
    for item in ("cold_start", "fallback"):
        row = status(lab.run, item)
        assert states[item] == "success"
        assert row.verdict == "fail"
    if critical == "measures":
        assert (states["health_checks"], states["promote"]) == ("success", "success")
    else:
        assert (states["health_checks"], states["promote"]) == ("failed", "upstream_failed")


# The verdicts that the task reads after its pod.


def leave(lab, item, verdict):
    faults = {Verdict.PASS: 0, Verdict.FAIL: 1}[verdict]
    lab.leave(item, {}, [measure("faults", faults, "rows", "<=", 0)])


@pytest.mark.parametrize(
    ("left", "stops"),
    [
        ({"deduplication": Verdict.PASS}, None),
        ({"deduplication": Verdict.FAIL}, r"deduplication \(critical\).*faults is 1"),
        ({"determinism": Verdict.FAIL}, None),
        ({"deduplication": None}, "left no evidence"),
        # An audit names every item that stops.
        (
            {
                "schema_validation": Verdict.PASS,
                "deduplication": Verdict.FAIL,
                "pii_scrubbing": Verdict.FAIL,
            },
            "^deduplication.*; pii_scrubbing",
        ),
    ],
)
def test_a_critical_failure_alone_stops_the_run_with_its_reason(lab, capsys, left, stops):
    for item, verdict in left.items():
        if verdict is not None:
            leave(lab, item, verdict)
    if stops is None:
        judge(lab.run.uri, list(left))
        ((item, verdict),) = left.items()
        assert f"{item}: {verdict}" in capsys.readouterr().out
    else:
        with pytest.raises(AirflowFailException, match=stops):
            judge(lab.run.uri, list(left))


def test_a_missing_run_is_one_sentence(tmp_path):
    with pytest.raises(AirflowFailException, match="there is no run at"):
        judge(f"{tmp_path.as_uri()}/runs/none", ["deduplication"])


@pytest.mark.parametrize("outages", [2, 3])
def test_a_store_that_is_away_for_a_moment_is_asked_again(lab, monkeypatch, outages):
    """Whatever fails here has the pod do its hours of work once more."""
    left = ["the store is away"] * outages
    check_item = verdicts.check_item

    def look(*arguments):
        if left:
            raise RetryableError(left.pop())
        return check_item(*arguments)

    monkeypatch.setenv("TUNELINE_RETRY_SECONDS", "0.01")
    monkeypatch.setattr(verdicts, "check_item", look)
    leave(lab, "determinism", Verdict.PASS)
    if outages < 3:
        judge(lab.run.uri, ["determinism"])
    else:
        with pytest.raises(RetryableError, match="away"):
            judge(lab.run.uri, ["determinism"])
