"""The task that waits for a canary, and its trigger, on the release log of a real store."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSkipException,
    TaskDeferralTimeout,
    TaskDeferred,
)
from tests.lab.airflow_api import airflow_api
from tests.lab.canaries import ASKED, release
from tests.lab.http_server import Handler, serving
from tests.lab.runs import Lab

from tuneline.errors import RetryableError
from tuneline.governance.release.canary import CanaryLog
from tuneline.governance.release.rollback import roll_back
from tuneline_airflow.canary_trigger import CanaryDecided
from tuneline_airflow.waiting import AwaitCanary

ROOT = Path(__file__).parents[2]
CONTEXT = {"dag_run": SimpleNamespace(dag_id="main", run_id="b")}


class Case:
    """A run whose version was released after another one, and the task that waits for it."""

    def __init__(self, folder, settings=ASKED, before=("a",)):
        self.run = Lab(folder, settings, run_id="b").run
        self.store, self.name = self.run.store, self.run.config.name
        for version in before:
            release(self.store, self.name, version)
        release(self.store, self.name, "b", settings=settings)
        self.log = CanaryLog(self.store)
        self.task = AwaitCanary()
        self.task.run_uri = self.run.uri

    def wait(self):
        """Carry out the task until it defers; its trigger as the triggerer makes it."""
        with pytest.raises(TaskDeferred) as deferred:
            self.task.execute(CONTEXT)
        self.deferred = deferred.value
        path, kwargs = deferred.value.trigger.serialize()
        assert path == "tuneline_airflow.canary_trigger.CanaryDecided"
        return CanaryDecided(**{**kwargs, "seconds": 0.02})

    def resume(self, event):
        return self.task.resume_execution(self.deferred.method_name, {"event": event}, CONTEXT)

    def promote(self):
        self.log.promoted(self.name, "b", 0.1, "as good after 400 answers")

    def withdraw(self):
        self.log.withdrawn(self.name, "b", 0.1, "more errors after 90 answers")


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


def event_of(trigger, *, meanwhile=lambda: None, once=lambda: True):
    """Run a trigger; change something after some of its looks; its only event."""

    async def main():
        async def first():
            return [event.payload async for event in trigger.run()]

        waiting = asyncio.create_task(first())
        await asyncio.sleep(0.3)
        while not once():
            await asyncio.sleep(0.1)
        assert not waiting.done()
        meanwhile()
        (event,) = await asyncio.wait_for(waiting, 60)
        return event

    return asyncio.run(main())


def now_event(trigger):
    """Return the event of a trigger that has something to tell at once."""

    async def main():
        return [event.payload async for event in trigger.run()]

    (event,) = asyncio.run(asyncio.wait_for(main(), 60))
    return event


def test_no_canary_asked_and_a_first_release_are_skipped_with_the_reason(tmp_path):
    none = Case(tmp_path / "none", {})
    with pytest.raises(AirflowSkipException, match="asks for no canary"):
        none.task.execute(CONTEXT)
    first = Case(tmp_path / "first", before=())
    with pytest.raises(AirflowSkipException, match="is the first release"):
        first.task.execute(CONTEXT)


def test_it_waits_deferred_until_the_version_is_promoted(case, monkeypatch):
    manifest = case.store.get_bytes(f"models/{case.name}/b/manifest.json")
    trigger = case.wait()
    event = event_of(trigger, meanwhile=case.promote)
    with airflow_api() as (url, records):
        monkeypatch.setenv("AIRFLOW_CONN_TUNELINE_API", records.connection(url))
        told = case.resume(event)
    assert told == f"{case.name} b has come through its canary: as good after 400 answers"
    assert records.notes == {("main", "b"): told}
    assert case.store.get_bytes(f"models/{case.name}/b/manifest.json") == manifest
    assert not list(case.store.keys("runs/b/governance"))
    # A task that is cleared later on finds the outcome at once.
    assert case.task.execute(CONTEXT) == told


def test_a_withdrawn_version_fails_the_task_without_another_try(case):
    case.log.started(case.name, "b", 0.1)
    event = event_of(case.wait(), meanwhile=case.withdraw)
    why = "b was withdrawn: more errors after 90 answers; a serves now"
    with pytest.raises(AirflowFailException, match=why):
        case.resume(event)


def test_a_version_that_a_person_went_back_from_fails_the_task(case):
    trigger = case.wait()
    roll_back(case.store, case.name, None, by="bob", reason="too slow")
    with pytest.raises(AirflowFailException, match="not decided: bob rolled back to a: too slow"):
        case.resume(now_event(trigger))


def test_a_canary_that_nobody_begins_says_what_to_do(case):
    trigger = case.wait()
    assert 3500 < trigger.begin_by - time.time() <= 3600
    trigger.begin_by = time.time() + 0.6
    event = event_of(trigger)
    assert event["outcome"] == "not_begun"
    with pytest.raises(AirflowFailException, match=r"within 1 h; see that `tuneline follow` runs"):
        case.resume(event)


def test_a_canary_that_is_over_undecided_says_what_to_do(case):
    case.log.started(case.name, "b", 0.1)
    trigger = case.wait()
    trigger.begin_by = 0.0
    # It has begun, so that its own hours count; then the slack, from the begin of the task on.
    trigger.hours, trigger.slack_seconds = 0.0, 0.6
    trigger.not_before = time.time()
    event = event_of(trigger)
    assert event["outcome"] == "overdue"
    with pytest.raises(AirflowFailException, match=r"its 6 h are over.*start `tuneline follow`"):
        case.resume(event)


class Busy(Handler):
    """An S3 server that answers nobody."""

    asked = 0

    def do_GET(self):
        Busy.asked += 1
        self.answer(b"<Error><Code>SlowDown</Code></Error>", 503)

    do_HEAD = do_GET


@pytest.fixture
def busy_store(monkeypatch):
    with serving(Busy) as url:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        # Between its tries the client would wait for some ten seconds a look.
        delay = "botocore.retries.standard.ExponentialBackoff.delay_amount"
        monkeypatch.setattr(delay, lambda *_: 0.0)
        yield "s3://shared/team"


def test_a_store_that_can_not_be_read_is_looked_at_again(case, busy_store):
    trigger = case.wait()
    readable, trigger.store = trigger.store, busy_store

    def mend():
        trigger.store = readable
        case.promote()

    assert event_of(trigger, meanwhile=mend, once=lambda: Busy.asked)["outcome"] == "promoted"
    # Until the end of the wait; then another try of the task looks again.
    trigger.store = busy_store
    trigger.begin_by = trigger.hours = trigger.slack_seconds = 0.0
    event = now_event(trigger)
    assert event["outcome"] == "unreadable"
    with pytest.raises(RetryableError, match="S3 server answered"):
        case.resume(event)


def test_a_log_that_was_altered_fails_the_task_at_once(case):
    trigger = case.wait()
    case.store.put_bytes(f"models/{case.name}/b/release.jsonl", b"{}\n")
    with pytest.raises(AirflowFailException, match="line 1 is not an event"):
        case.resume(now_event(trigger))


def test_without_a_triggerer_the_task_says_so(case):
    case.wait()
    # Longer than the trigger's own times, which come first if there is one.
    assert case.deferred.timeout.total_seconds() == 3600 * (1 + 6 + 1)
    with pytest.raises(AirflowFailException, match="`airflow triggerer` runs") as failed:
        case.task.resume_execution("__fail__", {"error": "Trigger timeout"}, CONTEXT)
    assert not isinstance(failed.value, TaskDeferralTimeout)


def test_a_triggerer_can_import_it_and_loads_nothing_heavy():
    code = (
        "import sys; from airflow._shared.module_loading import import_string\n"
        "import_string('tuneline_airflow.canary_trigger.CanaryDecided')\n"
        "print(sorted({'torch', 'pandas', 'kubernetes', 'boto3'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin", "PYTHONPATH": f"{ROOT / 'include'}:{ROOT / 'dags'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr[-2000:]
