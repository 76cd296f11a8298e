"""Cores, worker processes, and the environment of child processes."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from tests.lab.data_runs import chat, text

import tuneline
from tuneline.asking import models as served_models
from tuneline.config import DataConfig
from tuneline.data.engine import engine_of
from tuneline.data.pii.replace.scrubber import make_scrubber
from tuneline.errors import UserError
from tuneline.machine import cores
from tuneline.machine.child_environment import child_environment
from tuneline.machine.workers import AHEAD, HERE, LEAST_ROWS, map_chunks, worker_count


def test_a_child_imports_this_package_before_any_other(tmp_path, monkeypatch):
    other = tmp_path / "tuneline"
    other.mkdir()
    (other / "__init__.py").write_text("raise ImportError('the wrong one')\n")
    (tmp_path / "beside.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = "import beside, os, tuneline; print(tuneline.__file__, os.environ['MORE'])"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(MORE="yes"),
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == [str(Path(tuneline.__file__)), "yes"]


def test_the_container_quota_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(cores, "_CGROUP_QUOTA", quota)
    for limit, expected in [("max 100000", 8), ("300000 100000", 3), ("50000 100000", 1)]:
        quota.write_text(limit)
        assert cores.available_cores() == expected
    quota.unlink()
    assert cores.available_cores() == 8


def test_the_default_leaves_one_and_can_be_set(monkeypatch):
    monkeypatch.delenv("TUNELINE_THREADS", raising=False)
    monkeypatch.setattr(cores, "available_cores", lambda: 4)
    assert cores.default_threads() == 3
    monkeypatch.setattr(cores, "available_cores", lambda: 1)
    assert cores.default_threads() == 1
    monkeypatch.setenv("TUNELINE_THREADS", "6")
    assert cores.default_threads() == 6
    monkeypatch.setenv("TUNELINE_THREADS", "all")
    with pytest.raises(UserError, match="TUNELINE_THREADS is 'all'"):
        cores.default_threads()


def test_the_cores_of_this_process_that_are_busy_now_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3, 7}, raising=False)
    busy = [80.0, 100.0, 100.0, 0.0]
    monkeypatch.setattr("psutil.cpu_percent", lambda seconds, percpu: busy if percpu else 0)
    assert cores.busy_cores() == pytest.approx(1.8)


def test_scoring_takes_all_cores_of_a_machine_that_is_quiet_now(monkeypatch):
    monkeypatch.delenv("TUNELINE_THREADS", raising=False)
    monkeypatch.setattr(served_models, "available_cores", lambda: 2)
    monkeypatch.setattr(cores, "available_cores", lambda: 2)
    for busy, threads in ((0.1, 2), (0.9, 1)):
        monkeypatch.setattr(served_models, "busy_cores", lambda busy=busy: busy)
        assert served_models.scoring_threads() == threads
    monkeypatch.setenv("TUNELINE_THREADS", "5")
    assert served_models.scoring_threads() == 5


def test_this_machine_tells_its_cores():
    assert 0 <= cores.busy_cores() <= len(os.sched_getaffinity(0))


def _square(offset, value):
    return value * value + offset, os.getpid()


def _make(offset):
    return partial(_square, offset)


def test_results_keep_the_order_of_the_chunks():
    here = [result for result, _ in map_chunks(partial(_make, 1), range(20), 1)]
    found = list(map_chunks(partial(_make, 1), range(20), 2))
    assert [result for result, _ in found] == here == [n * n + 1 for n in range(20)]
    assert os.getpid() not in {process for _, process in found}


def test_few_chunks_are_read_ahead():
    read = []

    def chunks():
        for number in range(40):
            read.append(number)
            yield number

    results = map_chunks(partial(_make, 1), chunks(), 2)
    assert next(results)[0] == 1
    assert len(read) <= 2 * AHEAD + 1
    assert len(list(results)) == 39


def test_few_rows_are_not_worth_processes():
    assert worker_count(LEAST_ROWS - 1) == 1
    assert worker_count(LEAST_ROWS) >= 1


@pytest.mark.parametrize(
    "model",
    # Three processes load the model.
    [pytest.param(False, id="patterns"), pytest.param(True, id="model")],
)
def test_the_number_of_workers_does_not_matter(monkeypatch, model):
    monkeypatch.setattr("tuneline.data.pii.replace.scrubber.CHUNK", 30)
    rows = [
        chat(f"{text(n)}, i am oksana number {n}, 4111 1111 1111 1111", f"Dear Anna {text(n, 3)}")
        if n % 3 == 0
        else chat(text(n), "Bitte warten Sie, wir haben das nicht für Sie und mich.")
        for n in range(100)
    ]
    keys = [str(n) for n in range(len(rows))]
    scrubber = make_scrubber(DataConfig(source="rows.jsonl", pii_ner=model))
    alone = scrubber.scrub(keys, rows, 1)
    assert scrubber.scrub(keys, rows, 2) == alone
    assert all(result.hits["CREDIT_CARD"] for result in alone[::3])
    assert alone[1].foreign == "de"


@pytest.mark.parametrize(
    ("remote", "what"),
    [
        (None, "SPARK_REMOTE is not set; set it to sc://HOST:PORT"),
        ("http://spark:15002/;token=hunter2", "SPARK_REMOTE names no Spark Connect server"),
    ],
)
def test_spark_without_an_address_is_refused(monkeypatch, remote, what):
    monkeypatch.delenv("SPARK_REMOTE", raising=False)
    if remote:
        monkeypatch.setenv("SPARK_REMOTE", remote)
    with pytest.raises(UserError, match=what) as refused:
        engine_of(DataConfig(source="rows.jsonl", engine="spark"))
    assert "hunter2" not in str(refused.value)
    assert engine_of(DataConfig(source="rows.jsonl")) is HERE
