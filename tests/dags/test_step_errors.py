"""Pods that fail, and pods whose item fails: only a critical item stops the run."""

import json
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from tests.lab import tasks as task_lab
from tests.lab.dag_runs import run_dag
from tests.lab.pods import IMAGE, Server
from tests.lab.runs import Lab
from tests.lab.tasks import connect, connection, prepared_run

from tuneline.config import PodConfig
from tuneline.evidence import measure
from tuneline.step import leave_killed
from tuneline.verdicts import status
from tuneline_airflow.pods import StepPod

ROOT = Path(__file__).parents[2]
LAST = 3


@pytest.fixture
def connected(server, monkeypatch):
    connect(server, monkeypatch, "default")


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, {})


@pytest.fixture
def run(lab):
    return lab.run


def carry_out(run, task_id, script, try_number=LAST, image=IMAGE, **options):
    pod = StepPod(task_id=task_id, command=[], **options)
    pod.cmds = ["bash", "-c", script]
    pod.env_vars = []
    pods = PodConfig(image=image, memory=options.pop("memory", "100Mi"))
    context = task_lab.context_of(
        task_id, try_number=try_number, prepared=prepared_run(run.uri, pods)
    )
    pod.execute(context)


EAT = "python3 -c 'import time; held = bytearray(300_000_000); time.sleep(30)'"
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


def test_what_may_pass_is_tried_again_first(connected, run):
    with pytest.raises(AirflowException, match="s3 is away"):
        carry_out(run, "determinism", ENDS["surroundings"][0], try_number=LAST - 1)
    assert run.find_evidence("determinism") is None


@pytest.mark.parametrize("end", ["killed", "broke"])
def test_a_critical_item_that_dies_stops_the_run(connected, run, end):
    with pytest.raises(AirflowException):
        carry_out(run, "latency_benchmark", ENDS[end][0])
    assert status(run, "latency_benchmark").verdict == "not_run"


@pytest.mark.parametrize("item", ["lora_selection", "production_quantization"])
def test_what_later_steps_need_stops_the_run_where_it_is_lacking(connected, run, item):
    with pytest.raises(AirflowException):
        carry_out(run, item, ENDS["killed"][0], try_number=LAST - 1)
    # The last try reads this.
    assert "exit code 137" in status(run, item).summary


def test_a_helper_step_that_dies_stops_the_run(connected, run):
    with pytest.raises(AirflowException):
        carry_out(run, "build_engine", "exit 1")


def test_a_wrong_run_stops_an_optional_item_too(connected, run):
    wrong = SAYS.format("user_error: this image speaks contract 9", 2)
    with pytest.raises(AirflowException, match="contract 9"):
        carry_out(run, "cold_start", wrong)
    assert run.find_evidence("cold_start") is None


def test_a_pod_that_never_starts_is_a_failed_item(connected, run):
    carry_out(run, "cold_start", "true", gpus=True, image="gone:1")
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
@pytest.mark.parametrize("critical", ["measures", "fails", "breaks"])
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
            PYTHONPATH=f"{ROOT / 'include'}:{ROOT / 'dags'}",
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
