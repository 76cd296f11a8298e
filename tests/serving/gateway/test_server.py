import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow.parquet
import pytest
import yaml
from tests.lab.waiting import wait_for

from tuneline.errors import UserError
from tuneline.serving.gateway.accounts.keys import add_key
from tuneline.serving.gateway.app.server import run_gateway
from tuneline.serving.gateway.ledger.reports import usage_by_key
from tuneline.serving.processes import free_port

from .conftest import ask, upstream_entry

INCLUDE = Path(__file__).parents[3] / "include"
COMMAND = [sys.executable, "-m", "tuneline.cli", "gateway", "--config"]


class Process:
    """The gateway as its own process, as it runs outside of tests."""

    def __init__(self, config: Path, key: str, files: int | None = None) -> None:
        self.log = config.with_suffix(".log")
        limit = ["prlimit", f"--nofile={files}:{files}"] if files else []
        self.popen = subprocess.Popen(
            [*limit, *COMMAND, str(config)],
            env={**os.environ, "PYTHONPATH": str(INCLUDE)},
            stderr=self.log.open("w"),
            stdout=subprocess.DEVNULL,
        )
        found = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text()), 60)
        self.url = found.group()
        self.client = httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=20
        )
        wait_for(lambda: self._status("/v1/health/ready") == 200)

    def _status(self, path: str) -> int:
        try:
            # A connection of its own, as a kubelet's probe has.
            return httpx.get(self.url + path).status_code
        except httpx.TransportError:
            return 0

    def ready(self) -> int:
        return self._status("/v1/health/ready")

    def live(self) -> int:
        return self._status("/v1/health/live")

    def signal(self) -> None:
        self.popen.send_signal(signal.SIGTERM)


@pytest.fixture
def launch(tmp_path, write_config, small) -> Iterator:
    processes: list[Process] = []

    def run(**fields: object) -> Process:
        key = add_key(tmp_path / "keys.json", "tester")
        config = write_config([upstream_entry(small)], port=0, **fields)
        processes.append(Process(config, key))
        processes[-1].key = key
        return processes[-1]

    yield run
    for process in processes:
        process.client.close()
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait()


def test_sigterm_lets_requests_finish_while_the_probe_says_no(launch, small, tmp_path):
    process = launch(drain={"delay_s": 1.5, "timeout_s": 30})
    small.words, small.token_delay_s = 100, 0.03
    result = {}

    def stream() -> None:
        response = process.client.post("/v1/chat/completions", json=ask(stream=True))
        result["text"] = response.text

    client = threading.Thread(target=stream)
    client.start()
    wait_for(small.requests)
    process.signal()
    wait_for(lambda: process.ready() == 503)
    # Until load balancers have noticed, new requests are still served.
    early = httpx.post(
        process.url + "/v1/chat/completions",
        json=ask(max_tokens=1),
        headers=process.client.headers,
    )
    assert early.status_code == 200

    def refused() -> httpx.Response | None:
        url, body = process.url + "/v1/chat/completions", ask(max_tokens=1)
        answer = httpx.post(url, json=body, headers=process.client.headers)
        return answer if answer.status_code == 503 else None

    late = wait_for(refused, pause=0.1)
    assert late.json()["error"]["code"] == "shutting_down"
    assert (process.ready(), process.live()) == (503, 200)
    client.join(30)
    assert result["text"].count("small-") == 100
    assert result["text"].endswith("data: [DONE]\n\n")
    assert process.popen.wait(20) == 0
    (used,) = usage_by_key(tmp_path / "usage.db")
    assert used.completion_tokens == 100 + used.requests - 1
    assert used.estimated_attempts == 0


def test_what_outlasts_the_drain_is_cut_off_and_still_billed(launch, small, tmp_path):
    process = launch(drain={"timeout_s": 0.3})
    small.words, small.token_delay_s = 1000, 0.03
    with process.client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as response:
        chunks = response.iter_raw()
        next(chunks)
        process.signal()
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in chunks:
                pass
    assert process.popen.wait(10) == 0
    (used,) = usage_by_key(tmp_path / "usage.db")
    assert used.estimated_attempts == 1
    assert used.completion_tokens > 0


def test_an_idle_gateway_stops_at_once_and_cleanly(launch):
    process = launch()
    began = time.monotonic()
    process.signal()
    assert process.popen.wait(20) == 0
    assert time.monotonic() - began < 10


def test_answers_do_not_wait_for_a_delayed_acknowledgement(launch):
    process = launch()
    seconds = []
    for _ in range(30):
        began = time.perf_counter()
        process.client.post("/v1/chat/completions", json=ask())
        seconds.append(time.perf_counter() - began)
    # With Nagle's algorithm on, each takes 40 ms, but for the first of a connection.
    assert min(seconds[5:]) < 0.035


def test_no_key_and_no_prompt_in_log_or_files(launch, small, tmp_path):
    process = launch()
    body = ask(messages=[{"role": "user", "content": "the-prompt"}])
    assert process.client.post("/v1/chat/completions", json=body).status_code == 200
    wrong = {"authorization": "Bearer tl-a-wrong-key"}
    assert httpx.post(process.url + "/v1/chat/completions", headers=wrong).status_code == 401
    small.mode = "error"
    assert process.client.post("/v1/chat/completions", json=body).status_code == 502
    process.signal()
    assert process.popen.wait(5) == 0
    log = process.log.read_text()
    assert "key=tester" in log
    assert "status=401" in log
    secrets = [process.key, "tl-a-wrong-key", "the-prompt"]
    for file in tmp_path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in content], file


@pytest.mark.parametrize("reader", ["full", "gone", "stuck"])
def test_a_log_that_nobody_takes_does_not_end_the_gateway(tmp_path, write_config, small, reader):
    key = add_key(tmp_path / "keys.json", "tester")
    config = write_config(
        [upstream_entry(small, ping=False)],
        port=free_port(),
        log={"format": "json"},
        production_log={"store": f"file://{tmp_path}/store", "spool": "spool"},
    )
    read, stderr = os.pipe()
    if reader == "full":
        stderr = os.open("/dev/full", os.O_WRONLY)
    elif reader == "gone":
        os.close(read)
    environment = {**os.environ, "PYTHONPATH": str(INCLUDE)}
    process = subprocess.Popen([*COMMAND, str(config)], env=environment, stderr=stderr)
    os.close(stderr)
    url = f"http://127.0.0.1:{yaml.safe_load(config.read_text())['port']}"
    headers = {"authorization": f"Bearer {key}"}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=20) as client:
            wait_for(lambda: answers(client))
            # More than a pipe holds.
            for _ in range(300):
                assert client.post("/v1/chat/completions", json=ask()).status_code == 200
            lost = client.get("/metrics").text.split("\ntuneline_gateway_log_lost_total ")[1:]
            assert reader == "stuck" or float(lost[0].split()[0]) > 0
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    finally:
        process.kill()
    (used,) = usage_by_key(tmp_path / "usage.db")
    assert used.requests == 300
    assert sum(map(len, logged(tmp_path / "store"))) == 300


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/v1/health/live").is_success
    except httpx.TransportError:
        return False


def logged(store: Path) -> list[pyarrow.Table]:
    return [pyarrow.parquet.read_table(part) for part in store.rglob("*.parquet")]


def test_a_taken_port_is_one_sentence(tmp_path, write_config, small):
    add_key(tmp_path / "keys.json", "tester")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = write_config([upstream_entry(small)], port=port)
        with pytest.raises(UserError, match=f"127.0.0.1:{port}"):
            run_gateway(config)


def test_a_missing_keys_file_is_one_sentence(write_config, small):
    with pytest.raises(UserError, match=r"keys\.json: no such keys file"):
        run_gateway(write_config([upstream_entry(small)]))
