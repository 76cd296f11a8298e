"""A run is followed line by line, and ended for good whatever the scheduler makes of it."""

from types import SimpleNamespace

import httpx
import pytest

from tuneline.stack import runs
from tuneline.stack.runs import DagRun


class Api:
    """Airflow's API for one run: each look at the run takes the next state of a list."""

    def __init__(self, states, patched=200):
        self.states, self.patched, self.patches = list(states), patched, 0

    def call(self, method, path, *, ok=(), **body):
        if method == "PATCH":
            assert body == {"state": "failed"}
            assert self.patched == 200 or self.patched in ok
            self.patches += 1
            return httpx.Response(self.patched)
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return httpx.Response(200, json={"state": state})


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(runs, "_LOOK_AGAIN_SECONDS", 0)


def test_a_run_that_stays_ended_is_ended_once():
    api = Api(["failed"])
    DagRun(api, "one").stop()
    assert api.patches == 1


def test_a_run_that_the_scheduler_calls_a_success_is_ended_again():
    api = Api(["failed", "success", "success", "failed"])
    DagRun(api, "one").stop()
    assert api.patches == 3
    assert api.states == ["failed"]


def test_a_run_that_is_gone_or_will_not_end_holds_nobody_up():
    gone = Api(["running"], patched=404)
    DagRun(gone, "one").stop()
    assert gone.patches == 1
    stubborn = Api(["success"])
    DagRun(stubborn, "one").stop()
    assert stubborn.patches == runs._STOP_TRIES


def test_a_store_that_can_not_be_read_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_STILL_SECONDS", -1.0)
    monkeypatch.setattr(runs, "_POLL_SECONDS", 0.0)
    states = iter(("running", "success"))
    train = {"task_id": "train", "try_number": 1, "state": "running", "duration": None}
    run = SimpleNamespace(
        state=lambda: next(states),
        tasks=lambda: [train],
        run_uri=lambda: f"{tmp_path.as_uri()}/runs/a",
    )
    lines = []
    assert runs.follow(run, lines.append) == "success"
    assert [line.split() for line in lines] == [["train", "running"]]
