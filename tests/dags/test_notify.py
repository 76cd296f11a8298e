"""Messages reach Slack, a mailbox and a webhook over their own protocols, and fail nothing."""

import json
from types import SimpleNamespace

import pytest
from tests.lab.http_server import Handler, serving
from tests.lab.smtp_server import mailbox

from tuneline.airflow.notify import Announce, announcers
from tuneline.config import Model, ModelFile

TI = SimpleNamespace(
    task_id="gate_pii_scrubbing",
    dag_id="finetune_to_production",
    run_id="night-1",
    log_url="http://ui/log",
)
FAILED = {"ti": TI, "exception": ValueError("pii_scrubbing (critical): fail: leaks <5> & more")}


def model(**places):
    return Model("faq", "", ModelFile.model_validate({"notify": places}))


@pytest.fixture
def http(monkeypatch):
    """A server for Slack's incoming webhooks and for a webhook of one's own."""
    got = []

    class Hooks(Handler):
        def do_POST(self):
            got.append((self.path, json.loads(self.body())))
            self.answer(b"ok")

    with serving(Hooks) as url:
        slack = {"conn_type": "slackwebhook", "host": f"{url}/services", "password": "T0/B0/s3cret"}
        hook = {"conn_type": "http", "host": url, "extra": {}}
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_ML", json.dumps(slack))
        monkeypatch.setenv("AIRFLOW_CONN_OPS_HOOK", json.dumps(hook))
        yield got


def test_a_failed_gate_is_told_on_slack(http):
    Announce("failure", model(slack="slack_ml")).notify(FAILED)
    ((path, message),) = http
    assert path == "/services/T0/B0/s3cret"
    assert message["text"].startswith("*faq: gate_pii_scrubbing failed*")
    assert "leaks &lt;5&gt; &amp; more" in message["text"]
    assert "http://ui/log" in message["text"]


def test_a_webhook_gets_one_json_object(http):
    Announce("drift", model(webhook="ops_hook"), "novelty rose").notify({"ti": TI})
    ((_, message),) = http
    assert message == {
        "event": "drift",
        "model": "faq",
        "title": "faq: production drifted",
        "text": "novelty rose",
        "dag_id": "finetune_to_production",
        "run_id": "night-1",
        "task_id": "gate_pii_scrubbing",
        "url": "http://ui/log",
    }


def test_a_waiting_question_is_mailed(monkeypatch):
    with mailbox() as (port, messages):
        connection = {
            "conn_type": "smtp",
            "host": "127.0.0.1",
            "port": port,
            "extra": {"disable_ssl": True, "disable_tls": True, "from_email": "tuneline@example"},
        }
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(connection))
        people = ["ann@example.com", "bob@example.com"]
        Announce("question", model(email=people)).notify({"ti": TI})
        (message,) = messages
    assert message["Subject"] == "faq: gate_pii_scrubbing waits for an answer"
    assert message["To"] == ", ".join(people)
    body = message.get_body(("html",)).get_content()
    assert "http://ui/log" in body


def test_a_place_that_fails_keeps_no_other_from_its_message(http, monkeypatch, caplog):
    dead = {"conn_type": "slackwebhook", "host": "http://127.0.0.1:1", "password": "T0/B0/s3cret"}
    monkeypatch.setenv("AIRFLOW_CONN_SLACK_ML", json.dumps(dead))
    Announce("failure", model(slack="slack_ml", webhook="ops_hook")).notify(FAILED)
    assert [message["event"] for _, message in http] == ["failure"]
    assert "s3cret" not in caplog.text


def test_only_the_wanted_events_are_told_and_only_where_there_is_a_place(http):
    Announce("drift", model(webhook="ops_hook", events=["failure"]), "x").notify({"ti": TI})
    assert http == []
    assert announcers("failure", model()) == []
    assert len(announcers("failure", model(slack="slack_ml"))) == 1
