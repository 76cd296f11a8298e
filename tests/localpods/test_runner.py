"""The supervisor by itself, without a server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.lab.pods import INCLUDE, wait_for

from localpods.runner import LogWriter
from localpods.state import read_json, write_json


def begin(directory: Path, script: str, **launch: Any) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "localpods.runner", str(directory)],
        stdin=subprocess.PIPE,
        env={"PYTHONPATH": str(INCLUDE)},
    )
    content = {
        "argv": ["bash", "-c", script],
        "env": {"PATH": "/usr/bin:/bin", "LOCALPODS_CONTAINER": str(directory)},
        "cwd": str(directory),
        "memory": None,
        "deadline": None,
        "grace": 1,
        **launch,
    }
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(json.dumps(content).encode())
    return process


def end_of(directory: Path) -> dict[str, Any]:
    return wait_for(lambda: read_json(directory / "exit.json"), what="the end")


def test_container_is_started_once(tmp_path: Path) -> None:
    script = "echo x >> runs; sleep 0.5"
    for process in [begin(tmp_path, script) for _ in range(3)]:
        assert process.wait(timeout=20) == 0
    assert (tmp_path / "runs").read_text() == "x\n"
    assert end_of(tmp_path)["exit_code"] == 0
    assert not list(tmp_path.glob(".claim*"))


def test_container_that_was_stopped_before_is_not_started(tmp_path: Path) -> None:
    write_json(tmp_path / "stop.json", {"grace": 10, "cause": "shutdown"})
    assert begin(tmp_path, "touch started").wait(timeout=20) == 0
    assert end_of(tmp_path)["message"] == "stopped before it started"
    assert not (tmp_path / "started").exists()


def test_server_that_dies_before_it_says_what_to_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "localpods.runner", str(tmp_path)]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(INCLUDE)}, input=b'{"argv": ["to', capture_output=True
    )
    assert done.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_sigterm_to_the_supervisor_ends_the_container(tmp_path: Path) -> None:
    process = begin(tmp_path, "sleep 600")
    started = wait_for(lambda: read_json(tmp_path / "started.json"), what="the start")
    process.terminate()
    end = end_of(tmp_path)
    assert (end["exit_code"], end["cause"]) == (143, "shutdown")
    assert not psutil.pid_exists(started["pid"])


def test_sigint_is_not_for_the_supervisor(tmp_path: Path) -> None:
    # Ctrl-C in the terminal of the server reaches nobody else.
    process = begin(tmp_path, "sleep 1; exit 5")
    wait_for(lambda: read_json(tmp_path / "started.json"), what="the start")
    process.send_signal(2)
    assert end_of(tmp_path)["exit_code"] == 5


def test_process_may_close_its_output_and_go_on(tmp_path: Path) -> None:
    began = time.monotonic()
    begin(tmp_path, "echo one; exec >&- 2>&-; sleep 1; exit 6")
    assert end_of(tmp_path)["exit_code"] == 6
    assert time.monotonic() - began > 1
    assert (tmp_path / "log").read_text().endswith(" one\n")


def test_lines_are_stamped_and_endless_ones_cut(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "log")
    writer.feed(b"one\ntw")
    writer.feed(b"o\n\n")
    writer.feed(b"x" * ((1 << 20) + 1))
    writer.feed(b"tail")
    writer.close()
    lines = [line.partition(b" ")[2] for line in (tmp_path / "log").read_bytes().splitlines()]
    assert lines[:3] == [b"one", b"two", b""]
    assert [len(line) for line in lines[3:]] == [(1 << 20) + 1, 4]


@pytest.mark.parametrize("lines", [200_000])
def test_much_output_loses_nothing(tmp_path: Path, lines: int) -> None:
    begin(tmp_path, f"seq {lines}")
    assert end_of(tmp_path)["exit_code"] == 0
    numbers = [int(line.split()[1]) for line in (tmp_path / "log").read_bytes().splitlines()]
    assert numbers == list(range(1, lines + 1))
