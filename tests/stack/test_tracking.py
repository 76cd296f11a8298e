"""The stack's MLflow: one small server on loopback, or the one that the user names."""

import json
from dataclasses import replace

import pytest

from tuneline.errors import UserError
from tuneline.stack import tracking
from tuneline.stack.lifecycle import image_map, pod_secrets


def test_the_server_is_small_private_and_quiet(layout, monkeypatch):
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://elsewhere")
    service = tracking.service(layout)
    options = dict(zip(service.argv, service.argv[1:], strict=False))
    assert options["--host"] == "127.0.0.1"
    assert options["--port"] == "15000"
    assert options["--workers"] == "1"
    assert options["--backend-store-uri"] == f"sqlite:///{layout.home}/mlflow/mlflow.db"
    assert "MLFLOW_BACKEND_STORE_URI" not in service.env
    assert service.env["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert service.env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_pods_log_to_it(layout):
    assert tracking.wanted(layout)
    assert image_map(layout)["env"]["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:15000"
    assert tracking.address(layout) == "http://127.0.0.1:15000"


def test_a_server_that_the_user_names_takes_its_place(layout, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.com")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2-hunter2")
    assert not tracking.wanted(layout)
    images = image_map(layout)
    assert images["env"]["MLFLOW_TRACKING_URI"] == "https://mlflow.example.com"
    assert "hunter2" not in json.dumps(images)
    secret = pod_secrets()["tuneline-credentials"]
    assert secret["MLFLOW_TRACKING_PASSWORD"] == "hunter2-hunter2"
    assert tracking.address(layout) == "https://mlflow.example.com"


def test_a_password_in_its_address_is_refused(layout, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@mlflow.example.com")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD") as refusal:
        tracking.wanted(layout)
    assert "hunter2" not in str(refusal.value)


def test_pods_of_a_cluster_could_not_reach_it(layout, tmp_path):
    cluster = replace(layout, kubeconfig=tmp_path / "kind.yaml")
    assert not tracking.wanted(cluster)
    assert "MLFLOW_TRACKING_URI" in tracking.address(cluster)
    # What the shell sets reaches local pods alone; those of a cluster read their secrets.
    assert "TUNELINE_POD_SECRETS" in tracking.address(cluster)
