"""Airflow on one machine: secrets, settings, a client that asks again, a run that is ended."""

import json
import os
import stat
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.lab.http_server import Handler, serving
from tests.lab.runs import Lab

from tuneline.errors import TunelineError
from tuneline.machine import airflow_api
from tuneline.serving.processes import free_port
from tuneline.stack import airflow, runs
from tuneline.stack.lifecycle import image_map, pod_secrets
from tuneline.stack.runs import DagRun
from tuneline.stack.serving import gateway_settings


def test_passwords_are_private_and_stay_and_approvers_have_one(layout, tmp_path, monkeypatch):
    airflow.prepare(layout)
    first = airflow.password(layout)
    assert len(first) >= 16
    for name in ("secrets.json", "passwords.json"):
        path = layout.airflow_home / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads((layout.airflow_home / "passwords.json").read_text()) == {"admin": first}
    (tmp_path / "faq.yaml").write_text("approvers: [ann]")
    monkeypatch.setenv("TUNELINE_MODELS", str(tmp_path))
    airflow.prepare(layout)
    kept = json.loads((layout.airflow_home / "passwords.json").read_text())
    assert (kept.keys(), airflow.password(layout)) == ({"ann", "admin"}, first)
    users = airflow.environment(layout)["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"]
    assert users == "ann:user,admin:admin"


def test_everything_is_private_and_the_settings_of_another_airflow_stay_out(layout, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW_CONN_PROD", "postgres://somewhere")
    airflow.prepare(layout)
    env = airflow.environment(layout)
    assert env["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert "AIRFLOW_CONN_PROD" not in env
    assert env["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] == "admin:admin"
    assert not any("ALL_ADMINS" in name for name in env)
    # Releases show the cost that the stack's gateway counts.
    assert env["TUNELINE_LEDGER"] == gateway_settings(layout)["ledger"]["path"]
    scheduler = next(s for s in airflow.components(layout) if s.name == "scheduler")
    # The worker's log server listens on every address and cannot be told otherwise.
    assert "--skip-serve-logs" in scheduler.argv


def test_with_celery_s_provider_its_settings_are_taken_and_tasks_defer(layout, monkeypatch):
    named = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
    monkeypatch.setenv(named, "postgresql://mine")
    airflow.prepare(layout)
    airflow.migrated(layout)
    assert not airflow.migration_due(layout)
    monkeypatch.setattr(airflow.util, "find_spec", lambda name: object())
    # Whether that database is up to date, no file here knows.
    assert airflow.migration_due(layout)
    assert [s.name for s in airflow.components(layout)] == [*airflow.COMPONENTS]
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW_CONN_PROD", "postgres://somewhere")
    services = {s.name: s for s in airflow.components(layout)}
    assert services.keys() == {*airflow.COMPONENTS, "worker", "triggerer"}
    env = services["worker"].env
    assert env["AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE"] == "True"
    assert (env[named], "AIRFLOW_CONN_PROD" in env) == ("postgresql://mine", False)


def test_a_cluster_replaces_the_local_pods(layout, tmp_path):
    airflow.prepare(layout)
    mine = tmp_path / "kind.yaml"
    for made, path in (
        (layout, layout.pods / "kubeconfig"),
        (replace(layout, kubeconfig=mine), mine),
    ):
        connection = json.loads(airflow.environment(made)["AIRFLOW_CONN_KUBERNETES_DEFAULT"])
        assert connection["extra"]["kube_config_path"] == str(path)


def test_the_database_is_prepared_once_for_each_version(layout):
    airflow.prepare(layout)
    assert airflow.migration_due(layout)
    airflow.migrated(layout)
    assert not airflow.migration_due(layout)
    (layout.airflow_home / "database-version").write_text("3.0.0")
    assert airflow.migration_due(layout)


def test_credentials_reach_pods_by_reference_only(layout, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    monkeypatch.setenv("WANDB_BASE_URL", "http://tracker")
    name = "AWS_SECRET_ACCESS_KEY"
    secret = {"tuneline-credentials": {name: os.environ[name]}}
    assert pod_secrets() == secret
    images = image_map(layout)
    assert images["env"]["WANDB_BASE_URL"] == "http://tracker"
    assert "hunter2" not in json.dumps(images)
    airflow.prepare(layout)
    assert "TUNELINE_POD_SECRETS" not in airflow.environment(layout)
    layout.pods.mkdir(parents=True)
    (layout.pods / "secrets.json").write_text(json.dumps(secret))
    assert airflow.environment(layout)["TUNELINE_POD_SECRETS"] == "tuneline-credentials"
    monkeypatch.delenv(name)
    assert pod_secrets() == {}


class Server:
    """Airflow's API; it answers with the next status of a list, the last for ever; 0 breaks off.

    Each look at the run takes the next state of another list.
    """

    def __init__(self):
        self.statuses, self.states, self.asked, self.port = [200], ["running"], [], 0

    def next_status(self, request):
        self.asked.append(request)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return 201 if request == "POST /auth/token" else status

    def next_state(self):
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    @property
    def ended(self):
        """How often the run was ended."""
        return sum(request.startswith("PATCH") for request in self.asked)


@pytest.fixture
def server():
    made = Server()

    class Api(Handler):
        def _answer(self):
            self.body()
            status = made.next_status(f"{self.command} {self.path}")
            state = made.next_state() if self.command == "GET" and status == 200 else ""
            if status == 0:
                self.connection.close()
            else:
                self.answer(json.dumps({"state": state, "access_token": "t"}).encode(), status)

        do_GET = do_POST = do_PATCH = _answer

    with serving(Api) as url:
        made.port = int(url.rpartition(":")[2])
        yield made


@pytest.fixture
def run(server, layout, monkeypatch):
    monkeypatch.setattr(airflow_api, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(runs, "_LOOK_AGAIN_SECONDS", 0)
    airflow.prepare(layout)
    client = airflow.client_of(replace(layout, ui_port=server.port))
    yield DagRun(client, "one")
    client.close()


def test_a_locked_database_and_a_broken_connection_are_waited_out(server, run):
    server.statuses = [500, 0, 503, 200]
    assert run.state() == "running"
    assert len(server.asked) == 4
    server.statuses = [500]
    with pytest.raises(TunelineError, match=r"API: GET /dags/.*/dagRuns/one: 500.*api-server"):
        run.state()
    assert len(server.asked) == 8


def test_a_refusal_is_not_asked_again_and_a_lost_answer_is_no_error(server, run):
    server.statuses = [422]
    with pytest.raises(TunelineError, match="422"):
        run.trigger({})
    assert len(server.asked) == 1
    server.statuses = [0, 409]
    run.trigger({})
    assert len(server.asked) == 3


def test_it_logs_in_when_its_token_has_expired(server, run):
    server.statuses = [401, 201, 200]
    assert run.state() == "running"
    assert server.asked[1] == "POST /auth/token"


def test_nothing_at_the_port_is_an_error_that_names_the_log(layout, monkeypatch):
    monkeypatch.setattr(airflow_api, "_PAUSE_SECONDS", 0)
    client = airflow.client_of(replace(layout, ui_port=free_port()))
    with pytest.raises(TunelineError, match=r"does not answer at http.*api-server"):
        client.call("GET", "/dags")
    client.close()


def test_a_run_is_ended_until_it_stays_ended(server, run):
    # The scheduler may conclude in between that it succeeded.
    server.states = ["failed", "success", "success", "failed"]
    run.stop()
    assert server.ended == 3
    assert server.states == ["failed"]
    run.stop()
    assert server.ended == 4
    # One that is gone, or will not end, holds nobody up.
    server.statuses = [404]
    run.stop()
    assert server.ended == 5
    server.statuses, server.states = [200], ["success"]
    run.stop()
    assert server.ended == 5 + runs._STOP_TRIES


def test_a_store_that_can_not_be_read_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_STILL_SECONDS", -1.0)
    monkeypatch.setattr(runs, "_POLL_SECONDS", 0.0)
    states = iter(("running", "success"))
    train = {"task_id": "train", "try_number": 1, "state": "running", "duration": None}
    followed = SimpleNamespace(
        state=lambda: next(states),
        tasks=lambda: [train],
        run_uri=lambda: f"{tmp_path.as_uri()}/runs/a",
    )
    lines = []
    assert runs.follow(followed, lines.append) == "success"
    assert [line.split() for line in lines] == [["train", "running"]]


def test_each_pod_of_a_mapped_task_has_its_line_and_its_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_STILL_SECONDS", -1.0)
    monkeypatch.setattr(runs, "_POLL_SECONDS", 0.0)
    run = Lab(tmp_path, {}).run
    run.note_progress("answer_holdout[1]", "tuned model: 3 of 9")
    one = {"task_id": "answer_holdout", "try_number": 1, "duration": 4.0}
    failed = {**one, "map_index": 0, "state": "failed"}
    states = iter(("running", "failed"))
    followed = SimpleNamespace(
        state=lambda: next(states),
        tasks=lambda: [failed, {**one, "map_index": 1, "state": "running"}],
        run_uri=lambda: run.uri,
        failure=lambda task: f"the engine of {task['map_index']} died",
    )
    lines = []
    assert runs.follow(followed, lines.append) == "failed"
    assert [" ".join(line.split()) for line in lines] == [
        "answer_holdout[0] FAILED: the engine of 0 died",
        "answer_holdout[1] tuned model: 3 of 9",
    ]
