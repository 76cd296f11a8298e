"""A training can be watched live: in MLflow, in Weights & Biases, in both or in neither."""

import json
import os
import threading
import time

import pytest
from mlflow.tracking import MlflowClient
from tests.lab.forked import start_training
from tests.lab.mlflow_server import MlflowServer
from tests.lab.runs import broken, value
from tests.lab.waiting import wait_for
from tests.lab.wandb_server import KEY, WandbServer

from tuneline.artifacts.training import TRAINED, latest_runs, unsynced
from tuneline.config import validate_config
from tuneline.errors import UserError
from tuneline.serving.processes import free_port
from tuneline.training import loss_monitoring, sync_tracking
from tuneline.training.tracking.local_mlflow import database_uri, note_server, running_server
from tuneline.training.tracking.mlflow_run import Place, Sender, find_place, open_mlflow
from tuneline.training.tracking.runs import Description, without_path
from tuneline.training.tracking.wandb_run import open_wandb

SHORT = {"max_steps": 6, "evaluations": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def mlflow(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.delenv("TUNELINE_TRACKING_URL", raising=False)
    return server


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def tracked(run):
    return {entry.tracker: entry for entry in TRAINED.find(run.run).tracking}


def describe(key="key"):
    return Description("tuneline", "run", key, {"r": 4}, {"tuneline.run_id": "run"})


def test_mlflow_has_every_step_of_a_training(lab, mlflow):
    run = lab(tracking=["mlflow"], **SHORT)
    run.train()
    found = tracked(run)["mlflow"]
    there = mlflow.client().get_run(found.run_id)
    history = run.history
    for name, key in (("train/loss", "loss"), ("eval/loss", "eval_loss")):
        got = [(m.step, m.value) for m in mlflow.client().get_metric_history(found.run_id, name)]
        assert got == [(e["step"], e[key]) for e in history if key in e]
    for name in ("learning_rate", "grad_norm", "tokens_per_second", "memory_gib"):
        assert mlflow.steps(found.run_id, f"train/{name}") == [1, 2, 3, 4, 5, 6]
    assert there.info.status == "FINISHED"
    assert there.data.params["effective_batch"] == "8"
    assert there.data.tags["tuneline.run_id"] == run.run.run_id
    dataset = run.run.entry("distribution_balancing").artifacts[0].sha256
    assert dataset.startswith(there.data.tags["tuneline.dataset"])
    shown = json.dumps([there.data.params, there.data.tags])
    assert str(run.root) not in shown
    assert run.base.name in shown
    assert str(run.base) not in shown
    evidence = run.execute("loss_monitoring", loss_monitoring.run)
    assert value(evidence, "live_tracking") == "online"
    link = f"{mlflow.url}/#/experiments/{there.info.experiment_id}/runs/{found.run_id}"
    assert value(evidence, "mlflow_link") == link
    assert f"watched live at {link}" in evidence.summary
    assert "live_tracking" not in broken(evidence)


def run_in_mlflow(mlflow, run):
    experiment = mlflow.client().get_experiment_by_name("tuneline").experiment_id
    of_run = f"tags.`tuneline.run_id` = '{run.run.run_id}'"
    newest = ["attributes.start_time DESC"]
    return mlflow.client().search_runs([experiment], of_run, order_by=newest, max_results=1)[0]


@pytest.mark.long
def test_a_killed_training_goes_on_in_the_same_runs(
    lab, mlflow, wandb_server, monkeypatch, tmp_path
):
    run = lab(tracking=["mlflow", "wandb"], epochs=30, evaluations=5)
    run.prepare()
    process = start_training(run.run.uri, tmp_path / "log")
    # Some steps after a checkpoint have to be there: they are trained again.
    saved = seen = 0
    while not (0 < saved < seen):
        assert process.is_alive()
        time.sleep(0.1)
        if saved := run.checkpoint:
            before = run_in_mlflow(mlflow, run)
            seen = max(mlflow.steps(before.info.run_id, "train/loss"), default=0)
    process.kill()
    process.join()
    assert run_in_mlflow(mlflow, run).info.status == "RUNNING"

    run.resume()
    found = tracked(run)
    assert run.trained["resumed_from"] > 0
    assert found["mlflow"].run_id == before.info.run_id
    assert mlflow.steps(before.info.run_id, "train/loss") == list(range(1, 136))
    evaluated = [0, 27, 54, 81, 108, 135]
    assert mlflow.steps(before.info.run_id, "eval/loss") == evaluated
    # The offline run of the killed process died with its pod; the new one has all of it.
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run.execute("sync_tracking", sync_tracking.run)
    rows = wandb_server.rows[found["wandb"].run_id]
    assert steps_of(rows, "train/loss") == list(range(1, 136))
    assert steps_of(rows, "eval/loss") == evaluated


@pytest.fixture
def wandb_alone(monkeypatch):
    """W&B keeps address and key for as long as its process runs: each test gets one anew."""
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    wandb.teardown()


@pytest.fixture
def wandb_server(wandb_alone, monkeypatch):
    made = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", made.url)
    yield made
    made.close()


def steps_of(rows, metric):
    return [row["_step"] for row in rows if metric in row]


def test_an_offline_run_is_synced_when_a_key_is_there(lab, mlflow, wandb_server, monkeypatch):
    run = lab(tracking=["mlflow", "wandb"], **SHORT)
    run.train()
    found = tracked(run)
    assert (found["mlflow"].mode, found["wandb"].mode) == ("online", "offline")
    assert wandb_server.runs == {}
    evidence = run.execute("loss_monitoring", loss_monitoring.run)
    # One tracker that can be watched is enough.
    assert value(evidence, "live_tracking") == "online"
    assert value(evidence, "wandb_mode") == "offline"
    assert value(evidence, "wandb_link") == found["wandb"].directory
    assert "WANDB_API_KEY is not set" in evidence.summary

    record = run.execute("sync_tracking", sync_tracking.run)
    assert "nothing was sent (WANDB_API_KEY is not set)" in record.summary
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    record = run.execute("sync_tracking", sync_tracking.run)
    run_id = found["wandb"].run_id
    rows = wandb_server.rows[run_id]
    losses = mlflow.client().get_metric_history(found["mlflow"].run_id, "train/loss")
    sent = [(row["_step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert sent == [(m.step, m.value) for m in losses]
    assert steps_of(rows, "eval/loss") == [0, 3, 6]
    assert json.loads(wandb_server.runs[run_id]["config"])["effective_batch"] == {"value": 8}
    page = f"{wandb_server.url}/us/tuneline/runs/{run_id}"
    assert record.summary == f"Weights & Biases: synced to {page}"
    assert unsynced(run.run) == []
    assert_nothing_private(run, wandb_server)


def assert_nothing_private(run, server):
    """No path, host name or key in anything that was sent."""
    everything = b"\n".join(server.said)
    # The name as a value, since a short one may be a part of other words.
    for private in (str(run.root), str(run.base), KEY, json.dumps(os.uname().nodename)):
        assert private.encode() not in everything


def test_a_run_is_online_with_a_key(lab, wandb_server, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = lab(tracking=["wandb"], **SHORT)
    run.train()
    found = tracked(run)["wandb"]
    rows = wandb_server.rows[found.run_id]
    losses = [(row["_step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(e["step"], e["loss"]) for e in run.history if "loss" in e]
    for metric in ("train/learning_rate", "train/grad_norm", "train/memory_gib"):
        assert steps_of(rows, metric) == [1, 2, 3, 4, 5, 6]
    assert steps_of(rows, "eval/loss") == [0, 3, 6]
    evidence = run.execute("loss_monitoring", loss_monitoring.run)
    assert value(evidence, "wandb_link") == f"{wandb_server.url}/us/tuneline/runs/{found.run_id}"
    assert "live_tracking" not in broken(evidence)
    assert_nothing_private(run, wandb_server)


def test_a_resumed_online_run_has_each_step_once(wandb_server, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for steps in (range(1, 6), range(4, 9)):
        _, tracker = open_wandb(describe(), tmp_path, print)
        for step in steps:
            tracker.log(step, {"train/loss": 1 / step})
        tracker.close(failed=False)
    assert steps_of(wandb_server.rows["key"], "train/loss") == list(range(1, 9))


def test_a_server_that_can_not_be_reached_is_tracked_offline(wandb_alone, monkeypatch, tmp_path):
    monkeypatch.setattr("tuneline.training.tracking.wandb_run._INIT_SECONDS", 2.0)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    said = []
    found, tracker = open_wandb(describe(), tmp_path, said.append)
    tracker.log(1, {"train/loss": 1.0})
    tracker.close(failed=False)
    assert found.mode == "offline"
    assert found.can_be_synced
    assert len(said) == 1
    assert "can't be reached" in said[0]


def test_a_run_that_breaks_on_the_way_stops_no_training_and_is_counted(wandb_alone, tmp_path):
    import wandb

    said = []
    _, tracker = open_wandb(describe(), tmp_path, said.append)
    tracker.log(1, {"train/loss": 1.0})
    wandb.run.finish()
    tracker.log(2, {"train/loss": 0.5})
    tracker.log(3, {"train/loss": 0.4})
    closed = tracker.close(failed=False)
    assert (closed.missed, closed.can_be_synced) == (2, True)
    assert len(said) == 1
    assert "Weights & Biases is lost" in said[0]


def test_a_server_out_of_reach_stops_no_training_and_gets_the_curve_later(
    lab, server, monkeypatch, capsys
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    run = lab(tracking=["mlflow"], **SHORT)
    run.train()
    said = [line for line in capsys.readouterr().err.splitlines() if "MLflow" in line]
    assert len(said) == 1
    assert "can't be reached" in said[0]
    assert "training goes on without it" in said[0]
    evidence = run.execute("loss_monitoring", loss_monitoring.run)
    assert value(evidence, "live_tracking") == "unreachable"
    assert "live_tracking" in broken(evidence)
    assert "no one could watch it live" in evidence.summary

    away = run.execute("sync_tracking", sync_tracking.run)
    assert "nothing was sent" in away.summary
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    record = run.execute("sync_tracking", sync_tracking.run)
    (entry,) = latest_runs(run.run)
    assert record.summary == f"MLflow: synced to {entry.url}"
    assert server.steps(entry.run_id, "train/loss") == [1, 2, 3, 4, 5, 6]
    assert server.steps(entry.run_id, "eval/loss") == [0, 3, 6]
    again = run.execute("sync_tracking", sync_tracking.run)
    assert again.summary == "nothing to sync"
    assert unsynced(run.run) == []


def test_a_server_that_is_lost_on_the_way_misses_entries_and_gets_them_later(mlflow, monkeypatch):
    monkeypatch.setattr("tuneline.training.tracking.mlflow_run.CLOSE_SECONDS", 1.0)
    said = []
    opened, tracker = open_mlflow(describe("lost"), said.append)
    tracker.log(1, {"train/loss": 2.0})
    wait_for(lambda: mlflow.steps(opened.run_id, "train/loss"), what="the first step")
    mlflow.stop()
    tracker.log(2, {"train/loss": float("nan")})
    closed = tracker.close(failed=False)
    assert closed.missed == 1
    assert closed.can_be_synced
    assert [line for line in said if "is lost" in line] == said
    mlflow.start()
    opened, tracker = open_mlflow(describe("lost"), said.append, closed.run_id)
    assert tracker.steps_logged() == (1, -1)
    tracker.log(2, {"train/loss": float("nan")})
    assert tracker.close(failed=False).missed == 0
    assert mlflow.steps(opened.run_id, "train/loss") == [1, 2]


def test_a_sender_keeps_what_a_lost_server_did_not_take():
    got, said, answers = [], [], threading.Event()

    def send(entries):
        if not answers.is_set():
            raise ConnectionError("no route\nto host")
        got.extend(entries)

    sender = Sender(send, said.append, pause=0.01)
    for number in range(5):
        sender.put(number)
    time.sleep(0.1)
    assert got == []
    answers.set()
    assert sender.close() == 0
    assert got == [0, 1, 2, 3, 4]
    assert said == [
        "MLflow is lost (no route); training goes on, metrics wait",
        "MLflow is back, what waited was sent",
    ]


def test_a_finished_training_is_not_logged_over(mlflow):
    runs = []
    for failed in (False, True, False):
        opened, tracker = open_mlflow(describe("again"), print)
        tracker.close(failed=failed)
        runs.append(opened.run_id)
    first, second, third = runs
    assert first != second == third


def test_without_a_server_the_file_of_the_stack_takes_the_run(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path))
    assert find_place().uri == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    opened, tracker = open_mlflow(describe(), print)
    tracker.log(1, {"train/loss": 2.0})
    closed = tracker.close(failed=False)
    assert (closed.mode, closed.url, closed.missed) == ("offline", None, 0)
    assert not closed.can_be_synced
    assert "make up" in closed.reason
    # The file is the one that the stack's server shows.
    client = MlflowClient(tracking_uri=database_uri(MlflowServer(tmp_path).layout.mlflow))
    (metric,) = client.get_metric_history(opened.run_id, "train/loss")
    assert (metric.step, metric.value) == (1, 2.0)
    # A database of one's own is no page either, whatever its kind.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite+pysqlite:///{tmp_path}/mlflow/mlflow.db")
    for pages, found in (("", ("offline", False)), ("http://tracking.example", ("online", True))):
        monkeypatch.setenv("TUNELINE_TRACKING_URL", pages)
        opened, tracker = open_mlflow(describe(f"of {pages}"), print)
        tracker.close(failed=False)
        assert (opened.mode, (opened.url or "").startswith("http://tracking.example/#/")) == found


def test_where_a_training_finds_its_server(server, tmp_path, monkeypatch):
    # One that was started by hand finds that of the stack.
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("TUNELINE_HOME", str(server.layout.home))
    assert find_place() == Place(server.url, server.url)
    dead = tmp_path / "mlflow"
    dead.mkdir()
    note_server(dead, f"http://127.0.0.1:{free_port()}")
    assert running_server(dead) is None
    # A pod that no secret tells of a server says which variable is missing.
    with monkeypatch.context() as patch:
        patch.delenv("TUNELINE_HOME")
        patch.setattr("tuneline.machine.checkout.project_root", lambda: tmp_path)
        with pytest.raises(UserError, match="MLFLOW_TRACKING_URI is not set"):
            find_place()
    # Pages have no password, and may be those of another name.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@tracking:5000")
    assert find_place().pages == "http://tracking:5000"
    monkeypatch.setenv("TUNELINE_TRACKING_URL", "http://localhost:5000/")
    assert find_place().pages == "http://localhost:5000/"


def test_paths_of_this_machine_are_not_told():
    told = {
        "/home/me/models/base": "base",
        "file:///home/me/base/": "base",
        "~/base": "base",
        "hf://org/name@v1": "hf://org/name@v1",
    }
    assert {given: without_path(given) for given in told} == told
    assert (without_path(["q_proj"]), without_path(8)) == (["q_proj"], 8)


def test_each_tracker_is_named_once():
    settings = {"data": {"source": "x"}, "training": {"tracking": ["mlflow", "mlflow"]}}
    with pytest.raises(UserError, match="name each tracker once"):
        validate_config(settings, "here")
