"""The store of Airflow's processes takes the connection aws_default, or else the environment."""

import json
import sys
from types import ModuleType

import pytest

from tuneline.airflow import connections
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
    monkeypatch.setattr(bucket, "by_connection", None)
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
