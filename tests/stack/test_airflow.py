import json
import stat
from dataclasses import replace

from tuneline.stack import airflow
from tuneline.stack.lifecycle import image_map, pod_secrets


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
