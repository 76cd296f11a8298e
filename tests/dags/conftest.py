"""A throw-away Airflow home; no test here needs its database."""

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from tests.lab.ml_environment import ML_PYTHON
from tests.lab.pods import Api, Server
from tests.lab.tasks import connect

ROOT = Path(__file__).parents[2]

# Airflow reads these when it is first imported, so they can't wait for a fixture.
if "AIRFLOW_HOME" not in os.environ:
    os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="tuneline-test-airflow-")
    atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
os.environ.setdefault("AIRFLOW__CORE__UNIT_TEST_MODE", "True")


@pytest.fixture(scope="session")
def dag():
    """The main DAG, imported as the DAG processor does it."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(ROOT / "dags"))
    assert bag.import_errors == {}
    return bag.dags["finetune_to_production"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A pod API whose second image is the ML environment."""
    made = Server(tmp_path_factory.mktemp("localpods"))
    images = json.loads(made.images.read_text())
    images["env"]["PYTHONPATH"] = str(ROOT / "include")
    images["images"]["ml:test"] = {"path_prepend": [str(ML_PYTHON.parent)]}
    made.images.write_text(json.dumps(images))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def api(server, monkeypatch):
    """A client of the server that stands behind `kubernetes_default`."""
    connect(server, monkeypatch)
    return Api(server)


@pytest.fixture(params=["False", "True"], ids=["in a worker", "deferred"])
def either_way(request, monkeypatch):
    """Tasks that stay in their worker, and tasks that leave it while their pods run."""
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", request.param)
