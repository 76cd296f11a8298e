"""A separate stack for the tests: temporary home, free ports."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.lab.whole_runs import short_rows

from tuneline.data.sample import SUPPORT
from tuneline.serving.processes import free_port
from tuneline.stack.airflow import client_of
from tuneline.stack.layout import Layout, find_layout

ROOT = Path(__file__).parents[2]
STACK = [sys.executable, "-m", "tuneline.stack"]
PORTS = ("TUNELINE_UI_PORT", "TUNELINE_GATEWAY_PORT", "TUNELINE_TRACKING_PORT")
# What would send parts of the stack somewhere else.
ELSEWHERE = ("TUNELINE_STORE", "TUNELINE_KUBECONFIG", "MLFLOW_TRACKING_URI")


class Commands:
    """Runs `python -m tuneline.stack …` against a separate home."""

    def __init__(self, home: Path) -> None:
        self.env = {
            **os.environ,
            "TUNELINE_HOME": str(home),
            # What is killed on purpose need not wait for its next try.
            "TUNELINE_RETRY_SECONDS": "1",
            **{name: str(free_port()) for name in PORTS},
        }
        for name in ELSEWHERE:
            self.env.pop(name, None)

    def run(self, *arguments, timeout=300, **more_env):
        return subprocess.run(
            [*STACK, *arguments],
            cwd=ROOT,
            env={**self.env, **more_env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def begin(self, *arguments):
        """Start a command and leave it running; it is alone in its process group.

        It hears Ctrl-C even where the tests run in the background of a script, whose shell
        has them ignore it.
        """
        return subprocess.Popen(
            ["env", "--default-signal=INT", *STACK, *arguments],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def layout(self):
        with pytest.MonkeyPatch.context() as patch:
            for name in ELSEWHERE:
                patch.delenv(name, raising=False)
            for name in ("TUNELINE_HOME", *PORTS):
                patch.setenv(name, self.env[name])
            return find_layout()


def output_until(process, words):
    """Read the output of a process up to the line with these words, and return that line."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if words in line:
            return line
    pytest.fail(f"it ended before it said {words!r}:\n{''.join(seen)}")


def interrupt(process, timeout=60):
    """Send Ctrl-C and return the output up to the end."""
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=timeout)
    return output


@pytest.fixture(scope="session")
def make_commands():
    """Make commands against a home of one's own."""
    return Commands


@pytest.fixture
def commands(tmp_path):
    made = Commands(tmp_path / "home")
    yield made
    made.run("down")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Commands against a stack that is up."""
    made = Commands(tmp_path_factory.mktemp("stack") / "home")
    up = made.run("up")
    assert up.returncode == 0, up.stdout + up.stderr
    yield made
    down = made.run("down")
    assert down.returncode == 0, down.stderr


@pytest.fixture(scope="module")
def client(running):
    """Airflow of the stack that is up."""
    made = client_of(running.layout())
    yield made
    made.close()


@pytest.fixture
def layout(tmp_path, monkeypatch):
    """Where a stack of this checkout would have its things."""
    for name in (*ELSEWHERE, "TUNELINE_TRACKING_URL"):
        monkeypatch.delenv(name, raising=False)
    store = (tmp_path / "store").as_uri()
    return Layout(ROOT, tmp_path / "home", 18080, 18000, store, tracking_port=15000)


@pytest.fixture
def taken():
    """A port that this process listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    lines = SUPPORT.read_bytes().splitlines(keepends=True)
    (folder / "sample.jsonl").write_bytes(b"".join(short_rows(lines)))
    return folder / "sample.jsonl"
