"""docker-compose.yaml: the real parser takes it, and nothing in it is open or secret."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.lab.commands import call

from tuneline.serving.following.command import read_settings
from tuneline.serving.gateway.config import GatewayConfig

ROOT = Path(__file__).resolve().parents[1]
SERVICES = set(
    "postgres s3 airflow-init airflow-api-server airflow-scheduler airflow-dag-processor "
    "pods tracking gateway follower".split()
)


def compose(folder, **variables):
    """The file as docker-compose reads it, with these variables in `.env`."""
    env_file = folder / "env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    words = ["--env-file", env_file, "--profile", "pods", "config"]
    return yaml.safe_load(call("docker-compose", *words, cwd=ROOT, check=True).stdout)


@pytest.fixture(scope="module")
def resolved(tmp_path_factory):
    """As before any secret was made."""
    return compose(tmp_path_factory.mktemp("compose"))


def test_the_full_stack_is_there_in_fixed_versions(resolved):
    assert set(resolved["services"]) == SERVICES
    for service in resolved["services"].values():
        assert re.search(r":(\d+(\.\d+)+|local)$", service["image"]), service["image"]
        if build := service.get("build"):
            assert (ROOT / build["dockerfile"]).is_file()
    for name in ("init.sh", "pods.sh", "follow.sh", "settings/init.sh"):
        assert (ROOT / "docker/compose" / name).is_file()
    scheduler = resolved["services"]["airflow-scheduler"]
    environment = scheduler["environment"]
    assert environment["AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION"] == "False"
    mounted = {Path(v["source"]).name: v["target"] for v in scheduler["volumes"]}
    assert mounted["dags"] == environment["AIRFLOW__CORE__DAGS_FOLDER"]
    image = (ROOT / "docker/airflow.Dockerfile").read_text()
    assert f"TUNELINE_MODELS={mounted['models']}\n" in image


def test_pods_go_to_a_cluster_that_is_named(tmp_path, resolved, monkeypatch):
    # Whoever starts the stack may have an account of their own in the shell.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody's")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://elsewhere.example.com")
    kubeconfig = tmp_path / "config"
    kubeconfig.touch()
    named = compose(
        tmp_path,
        TUNELINE_KUBECONFIG=kubeconfig,
        TUNELINE_STORE="s3://bucket/prefix",
        S3_ENDPOINT_URL="https://s3.example.com",
        S3_ACCESS_KEY="key",
        TUNELINE_IMAGE="registry/ml:1.2",
        TUNELINE_NAMESPACE="ml",
    )
    for document, path, namespace in (
        (resolved, "/run/tuneline/kubeconfig", "default"),
        (named, "/run/tuneline-cluster/kubeconfig", "ml"),
    ):
        service = document["services"]["airflow-scheduler"]
        extra = json.loads(service["environment"]["AIRFLOW_CONN_KUBERNETES_DEFAULT"])["extra"]
        assert extra == {"kube_config_path": path, "namespace": namespace}
        assert any(path.startswith(volume["target"]) for volume in service["volumes"])
    environment = named["services"]["airflow-scheduler"]["environment"]
    mounted = {v["target"]: v["source"] for v in service["volumes"]}
    assert mounted["/run/tuneline-cluster/kubeconfig"] == str(kubeconfig)
    expected = {
        "TUNELINE_STORE": "s3://bucket/prefix",
        "AWS_ENDPOINT_URL": "https://s3.example.com",
        "AWS_ACCESS_KEY_ID": "key",
        "TUNELINE_IMAGE": "registry/ml:1.2",
        "TUNELINE_NAMESPACE": "ml",
    }
    assert expected.items() <= environment.items()


def test_ports_are_on_loopback_only(resolved):
    ports = [p for s in resolved["services"].values() for p in s.get("ports", [])]
    assert {p["published"] for p in ports} == {"8080", "8000", "5000"}
    assert {p["host_ip"] for p in ports} == {"127.0.0.1"}


def test_pods_track_on_the_server_of_the_stack(resolved):
    services = resolved["services"]
    environment = services["pods"]["environment"]
    assert environment["MLFLOW_TRACKING_URI"] == "http://tracking:5000"
    command = services["tracking"]["command"]
    (allowed,) = (word for word in command if word.startswith("--allowed-hosts="))
    assert "tracking:5000" in allowed.partition("=")[2].split(",")


def test_no_secret_stands_in_the_file():
    document = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
    for service in document["services"].values():
        for name, value in (service.get("environment") or {}).items():
            if any(word in name for word in ("SECRET", "PASSWORD", "FERNET", "API_KEY")) and (
                not name.endswith("_FILE") and name != "TUNELINE_POD_SECRETS"
            ):
                assert str(value).startswith("${"), f"{name} has a literal value"


@pytest.mark.parametrize("rate", ["0", "0.5", "1"])
def test_the_gateway_logs_to_the_store_unless_told_otherwise(tmp_path, rate):
    script = (ROOT / "docker/compose/follow.sh").read_text()
    program = tmp_path / "tuneline"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", script.replace("/var/lib/tuneline", str(tmp_path))],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "TUNELINE_STORE": "s3://tuneline/main",
            "TUNELINE_LOG_SAMPLE_RATE": rate,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "keys.json").write_text('{"keys": []}')
    log = GatewayConfig.model_validate(
        {**read_settings(tmp_path / "settings.yaml"), "upstreams": [], "models": []}
    ).production_log
    if rate == "0":
        assert log is None
    else:
        assert (log.store, log.sample_rate) == ("s3://tuneline/main", float(rate))
        assert log.spool == tmp_path / "spool"


def test_the_follower_writes_the_file_that_the_gateway_watches(resolved):
    gateway, follower = (resolved["services"][name] for name in ("gateway", "follower"))
    assert gateway["environment"]["TUNELINE_STORE"] == "s3://tuneline/main"
    assert gateway["environment"]["AWS_ENDPOINT_URL"] == "http://s3:8333"
    assert gateway["stop_grace_period"] == "45s"
    assert "--watch" in gateway["command"]
    (state,) = (v for v in gateway["volumes"] if v["target"] == "/var/lib/tuneline")
    assert state in follower["volumes"]
    script = (ROOT / "docker/compose/follow.sh").read_text()
    assert '--folder "$home"' in script
    # Engines listen on loopback, so both are on one network.
    assert follower["network_mode"] == "service:gateway"
