"""A gateway that is killed under load: what it loses, and what the next one finds."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.lab.waiting import wait_for

from tuneline.artifacts.request_log import days, read_day
from tuneline.serving.gateway.accounts.keys import add_key
from tuneline.store import Store, open_store

from .conftest import ask, upstream_entry

INCLUDE = Path(__file__).parents[3] / "include"
FLUSH_S = 0.3
# On a busy machine the thread that writes does not get a core at once.
SLACK_S = 0.7


def logged_in(store: Store) -> list[str]:
    return [
        request
        for day in days(store, "support")
        for request in read_day(store, "support", day)["request_id"].to_pylist()
    ]


class Process:
    """`tuneline gateway` as a user starts it, in a process group of its own."""

    def __init__(self, config: Path, key: str) -> None:
        self.log = config.with_suffix(".log")
        self.log.write_text("")
        command = [sys.executable, "-m", "tuneline.cli", "gateway", "--config", str(config)]
        self.popen = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(INCLUDE)},
            stderr=self.log.open("w"),
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        found = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text()), 60)
        self.url = found.group()
        self.headers = {"authorization": f"Bearer {key}"}
        wait_for(lambda: httpx.get(f"{self.url}/v1/health/ready").status_code == 200, 30)

    def await_log(self, store: Store) -> None:
        """Wait until the process that scrubs is up, and what it let through is in the store."""
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=ask(), headers=self.headers)
        wait_for(lambda: answer.headers["x-request-id"] in logged_in(store), 60)

    def kill(self) -> None:
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def stop(self) -> None:
        self.popen.send_signal(signal.SIGTERM)
        assert self.popen.wait(30) == 0


class Load:
    """Clients that ask until the gateway is gone.

    answered: the end and the id of each answered request.
    """

    def __init__(self, process: Process, clients: int = 4) -> None:
        self.answered: list[tuple[float, str]] = []
        self._process = process
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        url = f"{self._process.url}/v1/chat/completions"
        body = ask(stream=bool(number % 2))
        with httpx.Client(headers=self._process.headers, timeout=10) as client:
            while True:
                try:
                    answer = client.post(url, json=body)
                except httpx.TransportError:
                    return
                assert answer.status_code == 200
                self.answered.append((time.monotonic(), answer.headers["x-request-id"]))

    def join(self) -> None:
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def launch(tmp_path, write_config, small):
    key = add_key(tmp_path / "keys.json", "tester")
    section = {
        "store": (tmp_path / "store").as_uri(),
        "spool": "spool",
        "flush_interval_s": FLUSH_S,
        "part_seconds": 0.5,
        "pii_model": False,
    }
    config = write_config([upstream_entry(small)], port=0, production_log=section)
    running: list[Process] = []

    def start() -> Process:
        running.append(Process(config, key))
        return running[-1]

    yield start
    for process in running:
        if process.popen.poll() is None:
            process.kill()


def test_a_kill_loses_the_last_flush_at_most(launch, tmp_path):
    answered: list[str] = []
    due: set[str] = set()
    store = open_store((tmp_path / "store").as_uri())
    for seconds in (1.5, 2.1, 2.7):
        process = launch()
        process.await_log(store)
        load = Load(process)
        time.sleep(seconds)
        killed = time.monotonic()
        process.kill()
        load.join()
        answered += [request for _, request in load.answered]
        due |= {request for at, request in load.answered if at < killed - FLUSH_S - SLACK_S}
    assert len(due) > 50
    launch().stop()
    logged = logged_in(store)
    assert due <= set(logged)
    assert len(set(logged)) == len(logged)
    # A kill may come between the log and the answer, but nothing is logged twice or invented.
    assert len(set(logged) - set(answered)) <= 3 * (4 + 1)
    # No reader had to remove a copy: none was written.
    parts = [pq.read_table(path) for path in (tmp_path / "store" / "logs").rglob("*.parquet")]
    assert pa.concat_tables(parts).num_rows == len(logged)
    spool = [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    assert [path.name for path in spool] == [".lock"]
