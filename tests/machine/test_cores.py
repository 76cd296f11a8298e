"""Threads for a CPU engine."""

import os

import pytest

from tuneline.errors import UserError
from tuneline.machine import cores


def test_the_container_quota_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(cores, "_CGROUP_QUOTA", quota)
    for text, expected in [("max 100000", 8), ("300000 100000", 3), ("50000 100000", 1)]:
        quota.write_text(text)
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


def stat(*cores_):
    """The content of /proc/stat: for each core user, nice, system, idle, iowait, irq, …, guest."""
    lines = [f"cpu{n} {' '.join(map(str, times))}" for n, times in enumerate(cores_)]
    return "\n".join(["cpu 1 2 3 4 5 6 7 8 9 10", *lines, "intr 5 0 1", ""])


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """Give the times of four cores before and after; this process may use the first three."""
    path = tmp_path / "stat"
    monkeypatch.setattr(cores, "_STAT", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (7.5, 0.0, 0.0))

    def busy(before, after):
        path.write_text(before)
        return cores.busy_cores(lambda _: path.write_text(after))

    return busy


def test_the_cores_at_work_now_are_counted_and_not_what_has_ended(watched):
    start = (500, 0, 100, 900, 50, 0, 0, 0, 0, 0)
    quiet = (500, 0, 100, 920, 55, 0, 0, 0, 0, 0)
    # 20 of 25 ticks at work, 5 of them in a system call, and all 25 taken by another machine.
    working = (515, 0, 105, 905, 50, 0, 0, 0, 0, 0)
    stolen = (500, 0, 100, 900, 50, 0, 0, 25, 0, 0)
    assert watched(stat(*[start] * 4), stat(*[quiet] * 3, stolen)) == 0.0
    assert watched(stat(*[start] * 4), stat(working, stolen, quiet, quiet)) == pytest.approx(1.8)


def test_the_load_average_stands_in_where_nothing_else_is_known(watched):
    assert watched("cpu 1 2 3\n", "cpu 1 2 3\n") == 7.5
    assert watched(stat((1,) * 10), "no numbers") == 7.5


def test_scoring_takes_all_cores_of_a_machine_that_is_quiet_now(monkeypatch):
    from tuneline.asking import models as served_models

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
