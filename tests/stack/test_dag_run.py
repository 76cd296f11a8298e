"""A run is ended for good, whatever the scheduler makes of it meanwhile."""

import httpx
import pytest

from tuneline.stack import dag_run
from tuneline.stack.dag_run import DagRun


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
    monkeypatch.setattr(dag_run, "_LOOK_AGAIN_SECONDS", 0)


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
    assert stubborn.patches == dag_run._STOP_TRIES
