"""Logs: what is written, and which part of it is sent."""

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from tests.lab.pods import NAMESPACE, Api, state_of

from localpods.containers import LogWriter, log_time, read_log


def read(path: Path, **query: Any) -> bytes:
    async def collect() -> bytes:
        pieces = read_log(path, lambda: True, **query)
        return b"".join([piece async for piece in pieces])

    return asyncio.run(collect())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    lines = [(log_time(100 - i), f"line {i}") for i in range(100)]
    path.write_text("".join(f"{stamp} {line}\n" for stamp, line in lines))
    return path


def test_the_part_of_a_log_that_was_asked_for(log: Path, tmp_path: Path) -> None:
    assert read(log, tail=2) == b"line 98\nline 99\n"
    assert read(log, tail=0) == b""
    assert read(log, tail=1000) == read(log)
    assert read(log).count(b"\n") == 100
    lines = read(log, since=log_time(10.5)).splitlines()
    assert lines[0] == b"line 90"
    assert read(log, since=log_time(10.5), tail=3).splitlines() == lines[-3:]
    assert read(tmp_path / "none") == b""
    # Empty lines and blanks stay; a tail may go over several blocks.
    stamp, long = log_time(), tmp_path / "long"
    long.write_text(f"{stamp} \n{stamp}   indented\n")
    assert read(long) == b"\n  indented\n"
    long.write_text("".join(f"{stamp} {i:0100d}\n" for i in range(10_000)))
    assert [int(line) for line in read(long, tail=5000).splitlines()] == list(range(5000, 10_000))


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


def test_much_output_loses_nothing(api: Api) -> None:
    api.run("much", "seq 200000")
    assert [int(line) for line in api.log("much").splitlines()] == list(range(1, 200_001))


def test_process_may_close_its_output_and_go_on(api: Api) -> None:
    began = time.monotonic()
    pod = api.run("closes", "echo one; exec >&- 2>&-; sleep 1; exit 6")
    assert state_of(pod).terminated.exit_code == 6
    assert time.monotonic() - began > 1
    assert api.log("closes") == "one\n"


def test_follow_sends_lines_when_they_come(api: Api) -> None:
    api.create("follows", "for i in 1 2 3; do echo $i; sleep 0.5; done")
    api.wait_phase("follows", "Running")
    answer = api.core.read_namespaced_pod_log(
        "follows", NAMESPACE, follow=True, timestamps=True, _preload_content=False
    )
    arrived = []
    for line in answer:
        assert re.match(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z \d\n", line)
        arrived.append(time.monotonic())
    assert len(arrived) == 3
    assert arrived[-1] - arrived[0] > 0.8


def test_options_of_a_request(api: Api) -> None:
    api.run("options", "printf 'one\\n' >&2; printf two")
    # Output without a line break is kept.
    assert api.log("options", container="base") == "one\ntwo\n"
    assert api.log("options", tail_lines=1) == "two\n"
    assert api.log("options", since_seconds=1000) == "one\ntwo\n"
    time.sleep(1.1)
    assert api.log("options", since_seconds=1) == ""


def test_log_of_a_container_that_waits(api: Api) -> None:
    api.create("log-waits", container_image="unknown:1")
    api.wait_waiting("log-waits")
    with pytest.raises(client.ApiException) as caught:
        api.log("log-waits")
    assert caught.value.status == 400
    assert "is waiting to start" in caught.value.body


def test_container_must_be_named_among_several(api: Api) -> None:
    other = {"name": "other", "image": "tuneline/ml:local", "command": ["echo", "from other"]}
    base = {"name": "base", "image": "tuneline/ml:local", "command": ["echo", "from base"]}
    api.run("two", "", containers=[base, other])
    assert api.log("two", container="other") == "from other\n"
    for options in ({}, {"container": "third"}):
        with pytest.raises(client.ApiException, match=r"^\(400\)"):
            api.log("two", **options)
