"""The library takes Airflow's connections in Airflow's processes, or else the environment."""

import json
import sys
from types import ModuleType

import pytest

from tuneline.airflow import connections
from tuneline.data.sources import frozen, object_stores
from tuneline.store import bucket, open_store

BASE = "airflow.providers.amazon.aws.hooks.base_aws"


@pytest.fixture
def hooks(monkeypatch):
    """The provider's hook, which is not installed here: what it was made with, and a client."""
    made = []

    class AwsGenericHook:
        def __init__(self, aws_conn_id, client_type, config):
            made.append((aws_conn_id, client_type, config.retries["mode"]))
            self.conn = "by connection"

    module = ModuleType(BASE)
    module.AwsGenericHook = AwsGenericHook
    for name in [BASE.rsplit(".", n)[0] for n in range(1, 4)]:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, BASE, module)
    for module in (bucket, frozen, object_stores):
        monkeypatch.setattr(module, "by_connection", None)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    connections.take_connections()
    return made


def test_the_connection_goes_before_the_environment(hooks, monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT", raising=False)
    assert open_store("s3://bucket/prefix")._s3.meta.service_model.service_name == "s3"
    assert hooks == []
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({"conn_type": "aws", "login": "a"}))
    assert open_store("s3://bucket/prefix")._s3 == "by connection"
    assert hooks == [("aws_default", "s3", "standard")]


def test_databases_and_other_buckets_take_theirs(hooks, monkeypatch):
    """The file systems of the providers, which are not installed here."""
    monkeypatch.setattr(connections, "get_fs", lambda *asked: asked)
    assert frozen.by_connection("warehouse") is None
    assert object_stores.by_connection("gs") is None
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", "postgres://user:pass@host/shop")
    assert frozen.by_connection("warehouse") == "postgres://user:pass@host/shop"
    connection = json.dumps({"conn_type": "google_cloud_platform"})
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", connection)
    monkeypatch.setenv("AIRFLOW_CONN_WASB_DEFAULT", json.dumps({"conn_type": "wasb"}))
    assert object_stores.by_connection("gs") == ("gs", "google_cloud_default")
    assert object_stores.by_connection("az") == ("abfs", "wasb_default")
    monkeypatch.undo()
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", connection)
    assert connections._file_system("gs") is None, "its provider is not installed"
