"""Waiting for backfills and runs: one at a time, found again after a crash, and no worker held."""

import json
import os
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from tests.lab.airflow_api import airflow_api

from tuneline.airflow.rest import connected_api, leave_note
from tuneline.airflow.waiting import AwaitCanary, BackfillDays, RunEnds
from tuneline.errors import RetryableError
from tuneline.governance.retraining.outcome import read_outcome
from tuneline.store import open_store

CONTEXT = {"dag_run": SimpleNamespace(dag_id="drift_watch", run_id="look-1")}
OTHER = {"dag_run": SimpleNamespace(dag_id="drift_watch", run_id="look-2")}


@pytest.fixture
def api(monkeypatch):
    with airflow_api() as (url, records):
        monkeypatch.setenv("AIRFLOW_CONN_TUNELINE_API", records.connection(url))
        yield records


def backfill(days="2026-03-01..2026-03-03"):
    return BackfillDays(
        task_id="backfill", target="production_logs", days=days, conf={"sample": 1.0}, hours=1
    )


def test_all_leave_their_slot_between_two_looks():
    for task in (
        backfill(),
        RunEnds(task_id="await", target="d", run_id="r", hours=1, last="canary"),
        AwaitCanary(),
    ):
        assert task.mode == "reschedule"
        assert task.reschedule


def test_the_days_are_backfilled_whole_and_awaited(api):
    api.paused.add("production_logs")
    task = backfill()
    assert not task.poke(CONTEXT)
    (made,) = api.backfills
    assert made["dag_id"] == "production_logs"
    assert (made["from_date"], made["to_date"]) == ("2026-03-01T00:00:00Z", "2026-03-03T23:59:59Z")
    assert made["reprocess_behavior"] == "completed"
    assert made["dag_run_conf"] == {"sample": 1.0, "asked_by": "drift_watch/look-1"}
    assert "production_logs" not in api.paused
    assert not task.poke(CONTEXT)
    made["completed_at"] = "2026-03-04T01:00:00Z"
    assert task.poke(CONTEXT)
    assert len(api.backfills) == 1


def test_a_worker_that_died_after_asking_starts_no_second_backfill(api):
    api.lose_answer = True
    with pytest.raises(RetryableError):
        backfill().poke(CONTEXT)
    assert not backfill().poke(CONTEXT)
    assert len(api.backfills) == 1


def test_one_backfill_runs_at_a_time(api):
    assert not backfill().poke(OTHER)
    assert not backfill().poke(CONTEXT)
    assert len(api.backfills) == 1
    api.backfills[0]["completed_at"] = "2026-03-04T01:00:00Z"
    assert not backfill().poke(CONTEXT)
    assert [b["dag_run_conf"]["asked_by"] for b in api.backfills] == [
        "drift_watch/look-2",
        "drift_watch/look-1",
    ]


def test_failed_days_fail_the_task_by_name_and_no_days_skip_it(api):
    with pytest.raises(AirflowSkipException):
        backfill("").poke(CONTEXT)
    assert api.backfills == []
    backfill().poke(CONTEXT)
    api.backfills[0]["completed_at"] = "2026-03-04T01:00:00Z"
    api.failed_days = ["2026-03-02"]
    with pytest.raises(AirflowException, match="failed days: 2026-03-02"):
        backfill().poke(CONTEXT)


def test_a_run_is_awaited_until_it_ends_or_only_its_canary_is_undecided(api):
    task = RunEnds(task_id="await", target="main", run_id="night-1", hours=1, last="canary")
    api.runs["main", "night-1"] = "running"
    assert not task.poke(CONTEXT)
    for state in ("scheduled", "running"):
        api.tasks["main", "night-1", "canary"] = state
        assert not task.poke(CONTEXT)
    api.tasks["main", "night-1", "canary"] = "up_for_reschedule"
    assert task.poke(CONTEXT)
    api.tasks.clear()
    api.runs["main", "night-1"] = "failed"
    assert task.poke(CONTEXT)


def test_a_run_is_triggered_once(api):
    for _ in range(2):
        connected_api().trigger("main", "night-1", {"reason": "new data"})
    assert api.confs == {("main", "night-1"): {"reason": "new data"}}


def test_a_locked_database_is_worth_another_try_and_a_wrong_login_is_not(api, monkeypatch):
    api.failures = [503]
    with pytest.raises(RetryableError, match="locked"):
        connected_api().state("main", "night-1")
    connection = os.environ["AIRFLOW_CONN_TUNELINE_API"]
    wrong = {"conn_type": "http", "host": "http://127.0.0.1:1", "login": "a", "password": "hush"}
    monkeypatch.setenv("AIRFLOW_CONN_TUNELINE_API", json.dumps(wrong))
    with pytest.raises(RetryableError, match="does not answer") as error:
        connected_api().state("main", "night-1")
    assert "hush" not in str(error.value)
    monkeypatch.setenv("AIRFLOW_CONN_TUNELINE_API", connection)
    api.password = "changed"
    with pytest.raises(AirflowFailException, match="refuses the login of the connection"):
        backfill().poke(CONTEXT)


def test_a_token_takes_the_place_of_a_login(api, monkeypatch):
    connection = json.loads(os.environ["AIRFLOW_CONN_TUNELINE_API"])
    del connection["login"]
    connection["password"] = "t0ken"
    monkeypatch.setenv("AIRFLOW_CONN_TUNELINE_API", json.dumps(connection))
    connected_api().trigger("main", "night-1", {})
    assert connected_api().user == "admin"
    monkeypatch.setenv("AIRFLOW_CONN_TUNELINE_API", json.dumps({**connection, "password": "old"}))
    with pytest.raises(AirflowFailException, match="refuses the token of the connection"):
        backfill().poke(CONTEXT)


def test_without_the_connection_a_task_says_how_to_make_one(monkeypatch, capsys):
    monkeypatch.delenv("AIRFLOW_CONN_TUNELINE_API", raising=False)
    with pytest.raises(AirflowFailException, match="there is no Airflow connection 'tuneline_api'"):
        backfill().poke(CONTEXT)
    leave_note(CONTEXT, "no new data")
    assert "no new data" in capsys.readouterr().out


def test_a_note_stands_on_the_run_and_in_its_tab(api, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_STORE", tmp_path.as_uri())
    leave_note(CONTEXT, "no new data")
    outcome = read_outcome(open_store(tmp_path.as_uri()), "drift_watch", "look-1")
    assert outcome.text == "no new data"
    assert api.notes == {("drift_watch", "look-1"): "no new data"}
