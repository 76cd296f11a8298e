"""Airflow on one machine: its secrets and settings; a busy one is asked again."""

import json
import stat
from dataclasses import replace

import pytest
from tests.lab.http_server import Handler, serving

from tuneline.errors import TunelineError
from tuneline.serving.processes import free_port
from tuneline.stack import airflow
from tuneline.stack.lifecycle import image_map, pod_secrets
from tuneline.stack.runs import DagRun


def test_the_password_is_private_and_stays(layout):
    airflow.prepare(layout)
    first = airflow.password(layout)
    assert len(first) >= 16
    for name in ("secrets.json", "passwords.json"):
        path = layout.airflow_home / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads((layout.airflow_home / "passwords.json").read_text()) == {"admin": first}
    airflow.prepare(layout)
    assert airflow.password(layout) == first


def test_everything_listens_on_loopback_and_nobody_is_let_in_without_a_password(layout):
    airflow.prepare(layout)
    env = airflow.environment(layout)
    assert env["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] == "admin:admin"
    assert not any("ALL_ADMINS" in name for name in env)
    scheduler = next(s for s in airflow.components(layout) if s.name == "scheduler")
    # The worker's log server listens on every address and cannot be told otherwise.
    assert "--skip-serve-logs" in scheduler.argv


def test_settings_of_another_airflow_stay_out(layout, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW_CONN_PROD", "postgres://somewhere")
    airflow.prepare(layout)
    env = airflow.environment(layout)
    assert env["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert "AIRFLOW_CONN_PROD" not in env


def test_a_cluster_replaces_the_local_pods(layout, tmp_path):
    airflow.prepare(layout)
    local = json.loads(airflow.environment(layout)["AIRFLOW_CONN_KUBERNETES_DEFAULT"])
    assert local["extra"]["kube_config_path"] == str(layout.pods / "kubeconfig")
    other = replace(layout, kubeconfig=tmp_path / "kind.yaml")
    given = json.loads(airflow.environment(other)["AIRFLOW_CONN_KUBERNETES_DEFAULT"])
    assert given["extra"]["kube_config_path"] == str(tmp_path / "kind.yaml")


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
    secret = {"tuneline-credentials": {"AWS_SECRET_ACCESS_KEY": "hunter2-hunter2"}}
    assert pod_secrets() == secret
    images = image_map(layout)
    assert images["env"]["WANDB_BASE_URL"] == "http://tracker"
    assert "hunter2" not in json.dumps(images)
    airflow.prepare(layout)
    assert "TUNELINE_POD_SECRETS" not in airflow.environment(layout)
    airflow.write_private(layout.pods / "secrets.json", json.dumps(secret))
    assert airflow.environment(layout)["TUNELINE_POD_SECRETS"] == "tuneline-credentials"
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert pod_secrets() == {}


class Server:
    """Answers each request with the next status of a list, the last one for ever; 0 breaks off."""

    def __init__(self):
        self.statuses, self.asked, self.port = [200], [], 0

    def next_status(self, request):
        self.asked.append(request)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return 201 if request == "POST /auth/token" else status


@pytest.fixture
def server():
    made = Server()

    class Api(Handler):
        def _answer(self):
            self.body()
            status = made.next_status(f"{self.command} {self.path}")
            if status == 0:
                self.connection.close()
            else:
                self.answer(b'{"state": "running", "access_token": "t"}', status)

        do_GET = do_POST = do_PATCH = _answer

    with serving(Api) as url:
        made.port = int(url.rpartition(":")[2])
        yield made


@pytest.fixture
def client(server, layout, monkeypatch):
    monkeypatch.setattr(airflow, "_PAUSE_SECONDS", 0)
    airflow.prepare(layout)
    made = airflow.Airflow(replace(layout, ui_port=server.port))
    yield made
    made.close()


def test_a_locked_database_and_a_broken_connection_are_waited_out(server, client):
    server.statuses = [500, 0, 503, 200]
    assert DagRun(client, "one").state() == "running"
    assert len(server.asked) == 4


def test_an_airflow_that_stays_broken_is_an_error(server, client):
    server.statuses = [500]
    with pytest.raises(TunelineError, match=r"Airflow: GET /dags/.*/dagRuns/one: 500"):
        DagRun(client, "one").state()
    assert len(server.asked) == airflow._TRIES


def test_a_refusal_is_not_asked_again(server, client):
    server.statuses = [422]
    with pytest.raises(TunelineError, match="422"):
        DagRun(client, "one").trigger({})
    assert len(server.asked) == 1


def test_a_run_that_a_lost_answer_started_is_not_an_error(server, client):
    server.statuses = [0, 409]
    DagRun(client, "one").trigger({})
    assert len(server.asked) == 2


def test_it_logs_in_when_its_token_has_expired(server, client):
    server.statuses = [401, 201, 200]
    assert DagRun(client, "one").state() == "running"
    assert server.asked[1] == "POST /auth/token"


def test_nothing_at_the_port_is_an_error_that_names_the_log(layout, monkeypatch):
    monkeypatch.setattr(airflow, "_PAUSE_SECONDS", 0)
    client = airflow.Airflow(replace(layout, ui_port=free_port()))
    with pytest.raises(TunelineError, match=r"does not answer at http.*api-server"):
        client.call("GET", "/dags")
    client.close()
