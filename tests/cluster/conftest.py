"""A namespace of a real cluster under the restricted Pod Security Standard, and a run in it.

The variables that it needs are in CONTRIBUTING.md.
"""

from __future__ import annotations

import atexit
import base64
import os
import shutil
import tempfile
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Airflow reads these when it is first imported, so they can't wait for a fixture.
if "AIRFLOW_HOME" not in os.environ:
    os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="tuneline-test-airflow-")
    atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
os.environ.setdefault("AIRFLOW__CORE__UNIT_TEST_MODE", "True")

NEEDED = (
    "TUNELINE_TEST_KUBECONFIG",
    "TUNELINE_TEST_STORE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
)


def pytest_collection_modifyitems(items):
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        reason = f"needs a Kubernetes cluster and an S3 store: {', '.join(missing)} not set"
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def cluster():
    """The cluster with a namespace and a secret of its own, deleted at the end."""
    from tests.lab.cluster import Cluster

    made = Cluster(os.environ["TUNELINE_TEST_KUBECONFIG"], f"tuneline-test-{uuid.uuid4().hex[:8]}")
    credentials = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
    made.create({key: base64.b64encode(v.encode()).decode() for key, v in credentials.items()})
    yield made
    made.delete()


@pytest.fixture(scope="session")
def run(cluster):
    """A small run of the base model, whose dataset lies in the store."""
    from tests.lab.cluster import small_run

    store = f"{os.environ['TUNELINE_TEST_STORE'].rstrip('/')}/{cluster.namespace}"
    made = small_run(store, cluster)
    yield made
    for prefix in ("runs", "bases", "data"):
        made.store.delete_prefix(prefix)
