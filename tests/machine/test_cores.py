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
