"""A released version is registered in MLflow, once, with its manifest's hash."""

import pytest
from tests.lab.mlflow_server import MlflowServer
from tests.lab.runs import value

from tuneline.artifacts.governance import MANIFEST_REF
from tuneline.artifacts.releases import read_release


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory):
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def ready_lab(finished_lab):
    lab = finished_lab(name="model")
    assert lab.execute("lineage").verdict == "pass"
    return lab


def test_a_release_is_registered_once(ready_lab, mlflow, monkeypatch):
    lab = ready_lab
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.url)
    record = lab.execute("promote")
    assert record.summary == "model test is released to staging; MLflow has it as version 1"
    assert lab.execute("promote").summary == record.summary
    (version,) = mlflow.client().search_model_versions("name='model'")
    reference = MANIFEST_REF.read(lab.context("promote"))
    assert version.tags["tuneline.manifest_sha256"] == reference.sha256
    assert version.tags["tuneline.version"] == "test"
    assert version.tags["tuneline.run"] == lab.run.uri
    assert version.source.endswith("/models/model/test")
    found = mlflow.client().get_model_version_by_alias("model", "staging")
    assert found.version == version.version


def test_a_registry_that_is_away_stops_no_release(ready_lab, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    record = ready_lab.execute("promote")
    assert "MLflow's registry does not have it (" in record.summary
    assert value(record, "registered_in_mlflow") is False
    assert read_release(ready_lab.run.store, "model", "staging").version == "test"
