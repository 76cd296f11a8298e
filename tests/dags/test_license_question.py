"""The question about a licence: when it is asked, what it shows, and what is kept of the answer."""

import json
from datetime import UTC, datetime

import pytest
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    TaskAwaitingInput,
)
from tests.lab.runs import Lab
from tests.lab.tasks import context_of

from tuneline.licenses import answers as license_answers

REASON = "the legal team has read it: commercial use is granted"


@pytest.fixture
def bench(tmp_path):
    """Make a run whose base model was fetched, under some licence."""

    def make(license_id="LicenseRef-house", data="MIT"):
        made = Lab(tmp_path, {"data": {"license": data}})
        place = tmp_path / "shelf"
        place.mkdir()
        (place / "LICENSE").write_text("House licence.\n```\n# You may look at it.")
        stored = {
            "uri": made.run.config.base_model,
            "place": place.as_uri(),
            "digest": "d" * 64,
            "license": license_id,
            "license_source": "README.md: license",
            "revision": "r1",
            "architecture": "LlamaForCausalLM",
            "context_length": 128,
            "vocab_size": 10,
            "files": {"LICENSE": {"sha256": "0" * 64, "bytes": 34}},
        }
        made.leave("fetch_base", {"base.json": json.dumps(stored)})
        return made

    return make


def context(lab):
    made = context_of("approve_license", prepared={"return_value": lab.run.uri})
    made["ti"].id = "7"
    return {**made, "task_instance": made["ti"]}


def answer(option="Approve", reason=REASON):
    return {
        "chosen_options": [option],
        "params_input": {"reason": reason},
        "responded_at": datetime.now(UTC),
        "responded_by_user": {"id": "zoe", "name": "zoe"},
    }


def operator(dag):
    return dag.get_task("approve_license")


@pytest.fixture
def told(monkeypatch):
    """What Airflow was told of each question."""
    found = []
    place = "airflow.providers.standard.operators.hitl.upsert_hitl_detail"
    monkeypatch.setattr(place, lambda **detail: found.append(detail))
    return found


def test_a_known_licence_is_not_asked_about(dag, bench, told):
    with pytest.raises(AirflowSkipException):
        operator(dag).execute(context(bench("Apache-2.0")))
    assert told == []


@pytest.mark.parametrize(("license_id", "data"), [("LicenseRef-house", "MIT"), ("MIT", None)])
def test_an_unknown_licence_is_asked_about_until_it_is_answered(dag, bench, told, license_id, data):
    lab = bench(license_id, data)
    with pytest.raises(TaskAwaitingInput):
        operator(dag).execute(context(lab))
    operator(dag).execute_complete(context(lab), answer())
    with pytest.raises(AirflowSkipException):
        operator(dag).execute(context(lab))


def test_the_question_shows_the_licence_and_its_text(dag, bench, told):
    with pytest.raises(TaskAwaitingInput):
        operator(dag).execute(context(bench()))
    (detail,) = told
    assert "there is no rule for this licence" in detail["body"]
    assert "````\nHouse licence.\n```\n# You may look at it.\n````" in detail["body"]
    assert [field["schema"]["title"] for field in detail["params"].values()] == ["Reason"]


def test_the_answer_is_kept_with_its_author_and_reason(dag, bench):
    lab = bench()
    operator(dag).execute_complete(context(lab), answer())
    (kept,) = license_answers.acceptances(lab.run).values()
    assert (kept.by, kept.reason) == ("zoe", REASON)
    approvals = json.loads(lab.run.store.get_bytes(lab.run.key("approvals.json")))["approvals"]
    assert [(a["subject"], a["decision"], a["by"]) for a in approvals] == [
        ("license_audit", "Approve", "zoe")
    ]


def test_an_approval_without_a_reason_fails_the_task_which_asks_again(dag, bench):
    lab = bench()
    with pytest.raises(AirflowException, match="needs a reason") as failed:
        operator(dag).execute_complete(context(lab), answer(reason=None))
    assert not isinstance(failed.value, AirflowFailException)
    assert license_answers.acceptances(lab.run) == {}


def test_a_rejection_stops_the_run_for_good(dag, bench):
    lab = bench()
    with pytest.raises(AirflowFailException, match="zoe rejected the licences"):
        operator(dag).execute_complete(context(lab), answer("Reject"))
    assert license_answers.acceptances(lab.run) == {}
    assert lab.run.store.exists(lab.run.key("approvals.json"))
