"""The library takes Airflow's connections in Airflow's processes, or else the environment."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from airflow.sdk import BaseOperator

from tuneline.airflow import connections
from tuneline.data.sources import object_stores
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
    for module in (bucket, object_stores):
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


def test_other_buckets_take_theirs(hooks, monkeypatch):
    """The file systems of the providers, which are not installed here."""
    monkeypatch.setattr(connections, "get_fs", lambda *asked: asked)
    assert object_stores.by_connection("gs") is None
    connection = json.dumps({"conn_type": "google_cloud_platform"})
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", connection)
    monkeypatch.setenv("AIRFLOW_CONN_WASB_DEFAULT", json.dumps({"conn_type": "wasb"}))
    assert object_stores.by_connection("gs") == ("gs", "google_cloud_default")
    assert object_stores.by_connection("az") == ("abfs", "wasb_default")
    monkeypatch.undo()
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", connection)
    assert connections._file_system("gs") is None, "its provider is not installed"


def test_the_dags_that_write_a_table_as_parquet_parse(monkeypatch):
    """With a stand-in of the operator, whose provider is not installed here."""
    name = "airflow.providers.amazon.aws.transfers.sql_to_s3"
    given = {}

    class SqlToS3Operator(BaseOperator):
        def __init__(self, *, task_id, outlets, **options):
            super().__init__(task_id=task_id, outlets=outlets)
            given.update(options)

    module = ModuleType(name)
    module.SqlToS3Operator = SqlToS3Operator
    for parent in [name.rsplit(".", n)[0] for n in range(1, 4)]:
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    page = (Path(__file__).parents[2] / "docs" / "do" / "tables.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    made = {}
    exec(code, made)
    assert (given["file_format"], given["sql_conn_id"]) == ("parquet", "warehouse")
    assert made["TICKETS"].uri.rstrip("/") == "s3://datasets/tickets"
