"""Whole runs on PostgreSQL with Celery's executor: two at once, whose workers are killed."""

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from kubernetes import client as k8s
from kubernetes import config
from tests.lab.waiting import wait_for
from tests.lab.whole_runs import finish, tiny_task

from tuneline.catalogue import ITEMS
from tuneline.run import Run
from tuneline.serving.processes import free_port
from tuneline.stack.runs import DagRun
from tuneline.stack.services import ServiceTable
from tuneline.verdicts import checklist

pytestmark = [pytest.mark.celery, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
MODELS = ("first", "second")
# A step that computes for a while.
STEP = "holdout_performance"


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    """The URL of a broker."""
    port = free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    process = subprocess.Popen(["redis-server", *options], cwd=tmp_path_factory.mktemp("redis"))
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def running(make_commands, postgres, redis, tmp_path_factory):
    """A stack with two models."""
    made = make_commands(tmp_path_factory.mktemp("stack") / "home")
    models = tmp_path_factory.mktemp("models")
    for name in MODELS:
        (models / f"{name}.yaml").write_text("preset: laptop\n")
    database = postgres.create("airflow").replace("postgresql:", "postgresql+psycopg2:")
    settings = {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        "AIRFLOW__CELERY__BROKER_URL": redis,
    }
    page = (ROOT / "docs" / "operations.md").read_text()
    assert settings.keys() == set(re.findall(r"export (AIRFLOW__\w+)=", page))
    made.env |= {"TUNELINE_MODELS": str(models), **settings}
    up = made.run("up")
    assert up.returncode == 0, up.stdout + up.stderr
    assert "worker, triggerer" in up.stdout
    yield made
    down = made.run("down")
    assert down.returncode == 0, down.stderr


def crash(running, *names, **settings):
    """Kill services with all that they have started, and start them again."""
    layout = running.layout()
    table = ServiceTable(layout.services, layout.home / "logs")
    for name in names:
        parent = psutil.Process(table.find(name).pid)
        for process in [*parent.children(recursive=True), parent]:
            process.kill()
    up = running.run("up", **settings)
    assert up.returncode == 0, up.stderr
    assert f"starting Airflow ({', '.join(names)})" in up.stdout


def pods_of(running, **labels):
    """The pods on the stack's own cluster."""
    config.load_kube_config(str(running.layout().pods / "kubeconfig"))
    selector = ",".join(f"{name}={value}" for name, value in labels.items())
    return k8s.CoreV1Api().list_namespaced_pod("default", label_selector=selector).items


def await_pod(running, run, task):
    def runs():
        pods = pods_of(running, run_id=run.run_id, task_id=task)
        return any(pod.status.phase == "Running" for pod in pods)

    wait_for(runs, seconds=1500, what=f"the pod of {task}", pause=0.3)


def deferred(run):
    return {t["task_id"] for t in run.tasks() if t["state"] == "deferred"}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """The form of a run."""
    settings, dataset = tiny_task(tmp_path_factory.mktemp("tiny"))
    return {"data": str(dataset), "overrides": yaml.safe_dump(settings)}


@pytest.fixture(scope="module")
def ended(running, client, task):
    """Both runs, after what died while one of them trained, and while a worker watched a pod."""
    runs = {name: DagRun(client, name, f"finetune_to_production__{name}") for name in MODELS}
    for run in runs.values():
        run.trigger(task)
    first = runs["first"]
    await_pod(running, first, "train")
    wait_for(lambda: "train" in deferred(first), seconds=60, what="the deferral", pause=0.5)
    both = {run.state() for run in runs.values()}
    crash(
        running, "scheduler", "worker", "triggerer", AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE="False"
    )
    await_pod(running, first, STEP)
    crash(running, "worker")
    found = {name: (run, *finish(run, 2400)) for name, run in runs.items()}
    return SimpleNamespace(both=both, **found)


def test_two_runs_at_once_end_with_evidence_and_a_release_each(ended):
    assert ended.both == {"running"}
    for name in MODELS:
        run, end, _, failures = getattr(ended, name)
        assert (end, failures) == ("success", {})
        found = Run.open(run.run_uri())
        rows = {row.item: row for row in checklist(found)}
        assert not any(row.stops_release for row in rows.values())
        assert {i.id for i in ITEMS if rows[i.id].verdict == "not_run"} == set()
        assert found.store.exists(f"models/{name}/staging.json")


def test_a_pod_trains_on_while_all_that_could_watch_it_dies(ended):
    _, _, tasks, _ = ended.first
    assert tasks["train"]["try_number"] == 1


def test_the_next_worker_goes_on_with_the_pod_of_one_that_died_watching_it(ended):
    run, _, tasks, _ = ended.first
    assert tasks[STEP]["try_number"] == 2
    evidence = Run.open(run.run_uri()).find_evidence(STEP)
    assert evidence.airflow["try_number"] == 1


def test_a_run_that_a_user_ends_ends_its_pods(running, client, task, tmp_path):
    """No worker watches the pod."""
    run, step = DagRun(client, "ended", "finetune_to_production__first"), "schema_validation"
    # So many that the step is not done before its pod is gone.
    rows = Path(task["data"]).read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(rows * (20_000_000 // len(rows)))
    run.trigger({**task, "data": str(tmp_path / "rows.jsonl")})
    logs = running.layout().airflow_home / "logs"
    watched = f"dag_id=*__first/run_id=ended/task_id={step}/*.trigger.*"

    def begun():
        return any("Running phase" in path.read_text() for path in logs.glob(watched))

    wait_for(begun, seconds=300, what="the trigger", pause=0.1)
    run.stop()
    wait_for(lambda: not pods_of(running, run_id="ended", task_id=step), "the end", 0.5)
    # Not of its own accord.
    assert Run.open(run.run_uri()).find_evidence(step) is None
