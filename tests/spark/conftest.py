"""A Spark of two executors behind a Connect server; without PySpark, these tests are skipped."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.lab.data_runs import make_base
from tests.lab.extras import need

from tuneline.serving.processes import free_port


def pytest_collection_modifyitems(items):
    need(items, Path(__file__).parent, "pyspark", "no PySpark; run `make test-spark`")


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory):
    """A base model's directory with a small but real tokenizer."""
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The process of a Connect server, whose executors are processes of their own."""
    import pyspark

    from tuneline.machine.spark import connect

    port, folder = free_port(), tmp_path_factory.mktemp("spark")
    settings = {
        "spark.connect.grpc.binding.port": port,
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
    }
    command = [
        Path(pyspark.__file__).parent / "bin" / "spark-submit",
        "--class=org.apache.spark.sql.connect.service.SparkConnectServer",
        "--master=local-cluster[2,1,1024]",
        *(f"--conf={name}={value}" for name, value in settings.items()),
        "spark-internal",
    ]
    own = {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**os.environ, **own}
        )
    try:
        deadline = time.monotonic() + 400
        while process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.5)
        os.environ["SPARK_REMOTE"] = f"sc://localhost:{port}"
        yield psutil.Process(process.pid)
    finally:
        if process.poll() is None and connect.cache_info().currsize:
            # Without its server a session would try to say goodbye for minutes.
            connect().session.stop()
        os.environ.pop("SPARK_REMOTE", None)
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


@pytest.fixture
def spark(cluster):
    """The session of the cluster."""
    from tuneline.machine.spark import connect

    return connect()
