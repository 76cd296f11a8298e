"""Fixtures of the localpods tests."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.lab.pods import Api, Server

# Importing Airflow, as the tests with its operators do, makes its home.
AIRFLOW_HOME = tempfile.TemporaryDirectory()
os.environ.setdefault("AIRFLOW_HOME", AIRFLOW_HOME.name)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that leave it as it is."""
    yield from _served(Server(tmp_path_factory.mktemp("localpods")))


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server for a test that kills it."""
    yield from _served(Server(tmp_path))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server with options of the test's own."""
    servers: list[Server] = []

    def start(*options: str) -> Server:
        server = Server(tmp_path, *options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()
        assert server.processes() == []


@pytest.fixture
def api(server: Server) -> Api:
    return Api(server)


def _served(server: Server) -> Iterator[Server]:
    server.start()
    yield server
    server.stop()
    assert server.processes() == []
