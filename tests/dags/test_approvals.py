"""The approvals in Airflow: who may answer, what is shown, what is kept, what asks again."""

import json
from datetime import UTC, datetime

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskAwaitingInput
from tests.lab.runs import Lab
from tests.lab.tasks import context_of

from tuneline.artifacts.answers import APPROVALS, WAIVERS
from tuneline.artifacts.governance import MANIFEST_REF, ManifestRef
from tuneline.config import Model, ModelFile
from tuneline.evidence import measure
from tuneline.people import approvals
from tuneline.verdicts import status
from tuneline_airflow.people import approve_release, approve_waivers

WHY = "agreed with the owner of the service"
LIMIT = {
    "item": "holdout_performance",
    "limit": "evaluation.min_gain",
    "reason": "the base already answers everything",
}
MODEL = Model("m", "", ModelFile.model_validate({"approvers": ["alice", "bob"]}))


@pytest.fixture
def lab(tmp_path):
    """A production run that alice started with a limit that is looser than the policy."""
    settings = {"profile": "production", "evaluation": {"min_gain": -1}, "waivers": [LIMIT]}
    made = Lab(tmp_path, {**settings, "approval": True})
    meta = {**made.run.meta, "started_by": "alice", "approvers": ["alice", "bob"]}
    made.run.meta.update(meta)
    made.run.store.put_bytes(made.run.key("run.json"), json.dumps(meta).encode())
    approvals.record_waivers(made.run, "alice")
    made.leave("holdout_performance", {}, [measure("m", 0, "rows", "<=", 0)])
    return made


@pytest.fixture
def told(monkeypatch):
    """What Airflow was told of each question."""
    found = []
    place = "airflow.providers.standard.operators.hitl.upsert_hitl_detail"
    monkeypatch.setattr(place, lambda **detail: found.append(detail))
    return found


def context(lab, task_id):
    made = context_of(task_id, prepared={"return_value": lab.run.uri})
    made["ti"].id = "7"
    return {**made, "task_instance": made["ti"]}


def answer(user, option="Approve", reason=WHY):
    return {
        "chosen_options": [option],
        "params_input": {"reason": reason},
        "responded_at": datetime.now(UTC),
        "responded_by_user": user if user is None else {"id": user, "name": user},
    }


def ask(lab, task):
    with pytest.raises(TaskAwaitingInput):
        task.execute(context(lab, task.task_id))


def reply(lab, task, given):
    return task.execute_complete(context(lab, task.task_id), given)


def test_the_question_shows_the_limit_and_is_put_to_the_approvers(lab, told):
    ask(lab, approve_waivers(MODEL))
    (detail,) = told
    assert [user["id"] for user in detail["assigned_users"]] == ["alice", "bob"]
    assert "evaluation.min\\_gain is -1.0, the policy allows at least 0" in detail["body"]
    assert "/runs/manual__1/plugin/release-checklist)" in detail["body"]
    assert list(detail["params"]) == ["reason"]


@pytest.mark.parametrize(
    ("approvers", "known"),
    [
        (["alice"], None),
        ([{"id": 7, "name": "alice"}, "bob"], None),
        ([{"id": 7, "name": "alice"}, {"id": 8, "name": "bob"}], ["7", "8"]),
    ],
)
def test_airflow_is_given_approvers_by_id_or_not_at_all(monkeypatch, approvers, known):
    """It compares ids, which under other auth managers are not the names: nobody could answer."""
    place = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", place)
    asked = approve_release(Model("m", "", ModelFile.model_validate({"approvers": approvers})))
    assert (asked.assigned_users and [user["id"] for user in asked.assigned_users]) == known


def test_a_limit_is_accepted_by_another_approver_with_a_reason(lab, told):
    assert status(lab.run, "holdout_performance").verdict == "fail"
    task = approve_waivers(MODEL)
    ask(lab, task)
    reply(lab, task, answer("bob"))
    (waiver,) = WAIVERS.find(lab.run).waivers
    assert (waiver.by, waiver.approved_by, waiver.approval.reason) == ("alice", "bob", WHY)
    assert status(lab.run, "holdout_performance").verdict == "waived"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (answer("alice"), "alice started the run, and under profile: production another approver"),
        (answer("mallory"), "mallory is not an approver"),
        (answer(None), "nobody is not an approver"),
        (answer("bob", reason="ok"), "needs a reason of at least 10 characters"),
    ],
    ids=["starter", "stranger", "nobody", "no reason"],
)
def test_an_answer_that_does_not_count_asks_again_and_leaves_nothing(lab, told, given, sentence):
    task = approve_waivers(MODEL)
    ask(lab, task)
    with pytest.raises(AirflowException) as refused:
        reply(lab, task, given)
    assert not isinstance(refused.value, AirflowFailException)
    assert sentence in str(refused.value)
    assert task.retries > 0
    assert APPROVALS.find(lab.run).approvals == []
    assert status(lab.run, "holdout_performance").verdict == "fail"


def test_a_rejection_by_a_stranger_stops_nothing_and_asks_again(lab, told):
    task = approve_waivers(MODEL)
    ask(lab, task)
    with pytest.raises(AirflowException, match="mallory is not an approver") as refused:
        reply(lab, task, answer("mallory", "Reject"))
    assert not isinstance(refused.value, AirflowFailException)
    assert APPROVALS.find(lab.run).approvals == []


def test_the_release_of_a_run_that_nobody_started_is_put_to_a_second_approver(lab, told):
    lab.run.meta["started_by"] = None
    lab.run.store.put_bytes(lab.run.key("run.json"), json.dumps(lab.run.meta).encode())
    reference = ManifestRef(uri="x", sha256="c0ffee" * 10, version="test")
    lab.leave("lineage", {"manifest_ref.json": reference.model_dump_json()})
    task = approve_release(MODEL)
    ask(lab, task)
    assert "two approvers have to say yes" in told[0]["body"]
    for user in ("alice", "alice"):
        with pytest.raises(TaskAwaitingInput):
            reply(lab, task, answer(user))
    reply(lab, task, answer("bob"))
    kept = APPROVALS.find(lab.run).approvals
    assert [one.by for one in kept] == ["alice", "alice", "bob"]


def test_a_rejection_is_kept_with_its_reason_and_is_final(lab, told):
    task = approve_waivers(MODEL)
    ask(lab, task)
    with pytest.raises(AirflowFailException, match="bob rejected it: not for this customer"):
        reply(lab, task, answer("bob", "Reject", "not for this customer"))
    (kept,) = APPROVALS.find(lab.run).approvals
    assert (kept.decision, kept.by, kept.reason) == ("Reject", "bob", "not for this customer")
    assert status(lab.run, "holdout_performance").verdict == "fail"


def test_a_name_in_the_form_is_not_the_name_that_is_kept(lab, told):
    """Airflow refuses a field that the form does not have, whatever it says."""
    task = approve_waivers(MODEL)
    ask(lab, task)
    forged = answer("mallory")
    forged["params_input"] = {"reason": WHY, "by": "bob"}
    with pytest.raises((AirflowException, ValueError)):
        reply(lab, task, forged)
    assert APPROVALS.find(lab.run).approvals == []


def test_the_release_is_asked_about_by_its_manifest(lab, told):
    reference = ManifestRef(uri="x", sha256="c0ffee" * 10, version="test")
    lab.leave("lineage", {"manifest_ref.json": reference.model_dump_json()})
    task = approve_release(MODEL)
    ask(lab, task)
    assert "c0ffee" * 10 in told[0]["body"]
    assert "## The 25 verdicts" in told[0]["body"]
    reply(lab, task, answer("bob", reason=""))
    (kept,) = APPROVALS.find(lab.run).approvals
    assert (kept.by, kept.about) == ("bob", MANIFEST_REF.find(lab.run).sha256)


def test_a_manifest_written_after_the_question_is_not_what_was_approved(lab, told):
    first = ManifestRef(uri="x", sha256="1" * 64, version="test")
    lab.leave("lineage", {"manifest_ref.json": first.model_dump_json()})
    task = approve_release(MODEL)
    ask(lab, task)
    second = ManifestRef(uri="x", sha256="2" * 64, version="test")
    lab.leave("lineage", {"manifest_ref.json": second.model_dump_json()})
    reply(lab, task, answer("bob"))
    (kept,) = APPROVALS.find(lab.run).approvals
    assert kept.about == "1" * 64


def test_a_release_without_a_manifest_fails_plainly(lab, told):
    with pytest.raises(AirflowFailException, match="run lineage first"):
        approve_release(MODEL).execute(context(lab, "approve_release"))
