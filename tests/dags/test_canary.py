"""The task that waits for a canary, on the release log of a real store."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from tests.lab.airflow_api import airflow_api
from tests.lab.canaries import ASKED, release
from tests.lab.http_server import Handler, serving
from tests.lab.runs import Lab

from tuneline.airflow.waiting import AwaitCanary
from tuneline.errors import RetryableError
from tuneline.governance.release import canary
from tuneline.governance.release.rollback import roll_back


class Case:
    """A run whose version was released after another one, and the task that waits for it."""

    def __init__(self, folder, settings=ASKED, before=("a",)):
        self.run = Lab(folder, settings, run_id="b").run
        self.store, self.name = self.run.store, self.run.config.name
        for version in before:
            release(self.store, self.name, version)
        release(self.store, self.name, "b", settings=settings)
        self.log = canary.CanaryLog(self.store)
        self.task = AwaitCanary()
        self.task.run_uri = self.run.uri

    def look(self, waited=timedelta(0)):
        """Look once, some time after the first look; the XCom once it is decided, or False."""
        first = datetime.now(UTC) - waited
        ti = SimpleNamespace(get_first_reschedule_date=lambda _: first if waited else None)
        context = {"dag_run": SimpleNamespace(dag_id="main", run_id="b"), "ti": ti}
        looked = self.task.poke(context)
        return looked and looked.xcom_value


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


def test_no_canary_asked_and_a_first_release_are_skipped_with_the_reason(tmp_path):
    with pytest.raises(AirflowSkipException, match="asks for no canary"):
        Case(tmp_path / "none", {}).look()
    with pytest.raises(AirflowSkipException, match="is the first release"):
        Case(tmp_path / "first", before=()).look()


def test_it_waits_until_the_version_is_promoted(case, monkeypatch):
    manifest = case.store.get_bytes(f"models/{case.name}/b/manifest.json")
    assert case.look() is False
    assert case.look(timedelta(minutes=50)) is False
    case.log.started(case.name, "b", 0.1)
    assert case.look(timedelta(hours=6)) is False
    case.log.promoted(case.name, "b", 0.1, "as good after 400 answers")
    with airflow_api() as (url, records):
        monkeypatch.setenv("AIRFLOW_CONN_TUNELINE_API", records.connection(url))
        told = case.look(timedelta(hours=7))
    assert told == f"{case.name} b has come through its canary: as good after 400 answers"
    assert records.notes == {("main", "b"): told}
    assert case.store.get_bytes(f"models/{case.name}/b/manifest.json") == manifest
    assert not list(case.store.keys("runs/b/governance"))
    # A task that is cleared later on finds the outcome at once.
    assert case.look() == told


def withdraw(case):
    case.log.withdrawn(case.name, "b", 0.1, "more errors after 90 answers")


def go_back(case):
    roll_back(case.store, case.name, None, by="bob", reason="too slow")


def alter_log(case):
    case.store.put_bytes(f"models/{case.name}/b/release.jsonl", b"{}\n")


FAULTS = {
    "withdrawn": (withdraw, "b was withdrawn: more errors after 90 answers; a serves now"),
    "a person went back": (go_back, "not decided: bob rolled back to a: too slow"),
    "an altered log": (alter_log, "line 1 is not an event"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_ends_a_canary_badly_fails_the_task_without_another_try(case, fault):
    case.log.started(case.name, "b", 0.1)
    assert case.look() is False
    happens, why = FAULTS[fault]
    happens(case)
    with pytest.raises(AirflowFailException, match=why):
        case.look(timedelta(hours=1))


def test_a_canary_that_is_not_decided_in_time_says_what_to_do(case, monkeypatch):
    with pytest.raises(AirflowFailException, match=r"within 1 h; see that `tuneline follow` runs"):
        case.look(timedelta(hours=1.1))
    case.log.started(case.name, "b", 0.1)
    # It has begun, so that its hours and the slack count, from the first look of a cleared task on.
    assert case.look(timedelta(hours=8)) is False
    monkeypatch.setattr(canary, "SLACK", timedelta(hours=-7))
    with pytest.raises(AirflowFailException, match=r"its 6 h are over.*start `tuneline follow`"):
        case.look(timedelta(hours=8))
    monkeypatch.setattr(canary, "SLACK", timedelta(minutes=30))
    assert case.look() is False


class Busy(Handler):
    """An S3 server that answers nobody."""

    def do_GET(self):
        self.answer(b"<Error><Code>SlowDown</Code></Error>", 503)

    do_HEAD = do_GET


def test_a_store_that_can_not_be_read_is_looked_at_again_for_an_hour(case, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "test")
    # Between its tries the client would wait for some ten seconds a look.
    delay = "botocore.retries.standard.ExponentialBackoff.delay_amount"
    monkeypatch.setattr(delay, lambda *_: 0.0)
    case.log.promoted(case.name, "b", 0.1, "as good after 400 answers")
    readable = case.task.run_uri
    with serving(Busy) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        case.task.run_uri = "s3://shared/team/runs/b"
        with pytest.raises(RetryableError, match="s3://shared"):
            case.look(timedelta(days=7))
    assert case.task.retries * case.task.retry_delay == timedelta(hours=1)
    case.task.run_uri = readable
    assert "as good after 400 answers" in case.look()
