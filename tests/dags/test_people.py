"""The questions to people: who is asked about what, which answers count, and what is kept."""

import contextlib
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    TaskAwaitingInput,
)
from tests.lab.reviews import prepared
from tests.lab.runs import Lab, change_meta
from tests.lab.tasks import context_of

from tuneline.airflow import people
from tuneline.artifacts.answers import APPROVALS, ModelRules, findings_of, rules_key
from tuneline.artifacts.governance import MANIFEST_REF, ManifestRef
from tuneline.config import DataConfig, Model, ModelFile, User
from tuneline.data.pii.review.review import READ_ALL
from tuneline.evidence import measure
from tuneline.governance.production import labels
from tuneline.governance.release.approvals import refusal
from tuneline.licenses import answers as license_answers
from tuneline.people import ballots, blind_review
from tuneline.store import open_store
from tuneline.verdicts import status

WHY = "agreed with the owner of the service"
LIMIT = {"item": "holdout_performance", "limit": "evaluation.min_gain", "reason": "it knows all"}
FAB_MANAGER = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """What Airflow was told of each question."""
    found = []
    place = "airflow.providers.standard.operators.hitl.upsert_hitl_detail"
    monkeypatch.setattr(place, lambda **detail: found.append(detail))
    return found


@pytest.fixture
def other_manager(monkeypatch):
    """Airflow with an auth manager whose ids are not the users' names."""
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", FAB_MANAGER)


def context(lab, task):
    left = lab.run.uri if lab else {"days": "2026-03-04..2026-03-05"}
    made = context_of(task.task_id, prepared={"return_value": left})
    made["ti"].id = "7"
    return {**made, "task_instance": made["ti"], "dag_run": SimpleNamespace(run_id="look 1")}


def ask(lab, task):
    with pytest.raises(TaskAwaitingInput) as waiting:
        task.execute(context(lab, task))
    return waiting.value


def reply(lab, task, user, option, params):
    """Answer a question as a user, by id and name if they differ."""
    user_id, name = user if isinstance(user, tuple) else (user, user)
    event = {
        "chosen_options": [option],
        "params_input": params,
        "responded_at": datetime.now(UTC),
        "responded_by_user": {"id": user_id, "name": name} if user else None,
    }
    return task.execute_complete(context(lab, task), event)


# Approvals of the release, which accept its waivers.

MODEL = Model("m", "", ModelFile.model_validate({"approvers": ["alice", "bob"]}))


@pytest.fixture
def lab(tmp_path):
    """A production run that alice started with a limit that is looser than the policy."""
    settings = {"profile": "production", "evaluation": {"min_gain": -1}, "waivers": [LIMIT]}
    made = Lab(tmp_path, {**settings, "approval": True})
    change_meta(made, started_by="alice", approvers=["alice", "bob"])
    made.leave("holdout_performance", {}, [measure("m", 0, "rows", "<=", 0)])
    leave_manifest(made)
    return made


def leave_manifest(lab, digest="c0ffee" * 10):
    reference = ManifestRef(uri="x", sha256=digest, version="test")
    lab.leave("lineage", {"manifest_ref.json": reference.model_dump_json()})


def approve(lab, task, user, option="Approve", reason=WHY):
    return reply(lab, task, user, option, {"approval_reason": reason})


def test_a_limit_is_shown_to_the_approvers_and_accepted_by_another_one(lab, told):
    # The rules say who decides until a release has changed them, and not the model's file.
    rules = ModelRules.after(lab.run, None).model_dump_json(by_alias=True)
    lab.run.store.put_bytes(rules_key(lab.run.config.name), rules.encode())
    change_meta(lab, approvers=["carol"])
    task = people.approve_release(Model("m", "", ModelFile(approvers=[User(name="carol")])))
    ask(lab, task)
    (detail,) = told
    assert "a change of the model's rules: approvers" in detail["body"]
    assert [user["id"] for user in detail["assigned_users"]] == ["alice", "bob"]
    assert "evaluation.min\\_gain is -1.0, the policy allows at least 0" in detail["body"]
    assert "/runs/manual__1/plugin/release-checklist)" in detail["body"]
    assert list(detail["params"]) == ["approval_reason"]
    assert "asked for by a waiver of holdout\\_performance" in detail["body"]
    assert status(lab.run, "holdout_performance").verdict == "waived"
    assert "a waiver of holdout_performance" in refusal(lab.run)
    approve(lab, task, "bob")
    (kept,) = APPROVALS.find(lab.run).approvals
    assert (kept.by, kept.decision, kept.reason) == ("bob", "Approve", WHY)


@pytest.mark.usefixtures("other_manager")
@pytest.mark.parametrize(
    ("approvers", "known"),
    [
        (["alice"], None),
        ([{"id": 7, "name": "alice"}, "bob"], None),
        ([{"id": 7, "name": "alice"}, {"id": 8, "name": "bob"}], ["7", "8"]),
    ],
)
def test_airflow_is_given_approvers_by_id_or_not_at_all(approvers, known):
    """It compares ids, which under other auth managers are not the names: nobody could answer."""
    model = Model("m", "", ModelFile.model_validate({"approvers": approvers}))
    asked = people.approve_release(model)
    assert (asked.assigned_users and [user["id"] for user in asked.assigned_users]) == known


@pytest.mark.parametrize(
    ("user", "option", "fields", "sentence"),
    [
        (
            "alice",
            "Approve",
            {"approval_reason": WHY},
            "alice started the run, and under profile: prod",
        ),
        ("mallory", "Reject", {"approval_reason": WHY}, "mallory is not an approver"),
        ("bob", "Approve", {"approval_reason": "ok"}, "needs a reason of at least 10 characters"),
        # Airflow refuses a field that the form does not have.
        ("mallory", "Approve", {"approval_reason": WHY, "by": "bob"}, ""),
    ],
)
def test_an_answer_that_does_not_count_asks_again_and_leaves_nothing(
    lab, user, option, fields, sentence
):
    task = people.approve_release(MODEL)
    ask(lab, task)
    with pytest.raises((AirflowException, ValueError)) as refused:
        reply(lab, task, user, option, fields)
    assert not isinstance(refused.value, AirflowFailException)
    assert sentence in str(refused.value)
    assert task.retries > 0
    assert APPROVALS.find(lab.run).approvals == []


def test_a_rejection_is_kept_with_its_reason_and_is_final(lab):
    task = people.approve_release(MODEL)
    ask(lab, task)
    with pytest.raises(AirflowFailException, match=r"bob rejected .*: not for this customer"):
        approve(lab, task, "bob", "Reject", "not for this customer")
    (kept,) = APPROVALS.find(lab.run).approvals
    assert (kept.decision, kept.by, kept.reason) == ("Reject", "bob", "not for this customer")


def test_the_release_of_a_run_that_nobody_started_is_put_to_a_second_approver(lab, told):
    change_meta(lab, started_by=None)
    leave_manifest(lab)
    task = people.approve_release(MODEL)
    ask(lab, task)
    assert "two of these approvers have to say yes: alice, bob;" in told[0]["body"]
    for _ in range(2):
        with pytest.raises(TaskAwaitingInput):
            approve(lab, task, "alice")
    approve(lab, task, "bob")
    assert [one.by for one in APPROVALS.find(lab.run).approvals] == ["alice", "alice", "bob"]


def test_the_release_is_asked_about_by_the_manifest_that_was_shown(lab, told):
    task = people.approve_release(MODEL)
    lab.run.store.delete_prefix(lab.run.step_key("lineage"))
    with pytest.raises(AirflowFailException, match="run lineage first"):
        task.execute(context(lab, task))
    leave_manifest(lab)
    ask(lab, task)
    assert "c0ffee" * 10 in told[0]["body"]
    assert "## The 25 verdicts" in told[0]["body"]
    # One that was written after the question is not what was approved.
    shown = MANIFEST_REF.find(lab.run).sha256
    leave_manifest(lab, "2" * 64)
    approve(lab, task, "bob")
    (kept,) = APPROVALS.find(lab.run).approvals
    assert (kept.by, kept.about) == ("bob", shown)


# Licences.

LAWYERS = "the legal team has read it: commercial use is granted"


@pytest.fixture
def licensed(tmp_path):
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


@pytest.fixture
def license_task(dag):
    return dag.get_task("approve_license")


@pytest.mark.parametrize(("license_id", "data"), [("LicenseRef-house", "MIT"), ("MIT", None)])
def test_an_unknown_licence_is_asked_about_until_it_is_answered(
    license_task, licensed, told, license_id, data
):
    lab = licensed(license_id, data)
    ask(lab, license_task)
    if data:
        assert "there is no rule for this licence" in told[0]["body"]
        assert "````\nHouse licence.\n```\n# You may look at it.\n````" in told[0]["body"]
    approve(lab, license_task, "zoe", reason=LAWYERS)
    (kept,) = license_answers.acceptances(lab.run).values()
    assert (kept.by, kept.reason) == ("zoe", LAWYERS)
    (kept,) = APPROVALS.find(lab.run).approvals
    assert (kept.subject, kept.decision, kept.by) == ("license_audit", "Approve", "zoe")
    with pytest.raises(AirflowSkipException):
        license_task.execute(context(lab, license_task))


def test_a_known_licence_is_not_asked_about(license_task, licensed, told):
    with pytest.raises(AirflowSkipException):
        license_task.execute(context(licensed("Apache-2.0"), license_task))
    assert told == []


def test_a_licence_needs_a_reason_and_a_rejection_stops_the_run(license_task, licensed):
    lab = licensed()
    with pytest.raises(AirflowException, match="needs a reason") as failed:
        approve(lab, license_task, "zoe", reason=None)
    assert not isinstance(failed.value, AirflowFailException)
    with pytest.raises(AirflowFailException, match="zoe rejected the licences"):
        approve(lab, license_task, "zoe", "Reject")
    assert license_answers.acceptances(lab.run) == {}
    assert lab.run.store.exists(lab.run.key("approvals.json"))


# The blind review of answers.


@pytest.fixture
def bench(tmp_path):
    settings = {"review": True, "reviewers": ["ann", "ben"], "review_hours": 3}
    made = Lab(tmp_path, {"evaluation": settings})
    prepared(made)
    return made


def mapped(dag, task_id, part):
    """The operator of one mapped task, as a worker makes it."""
    return dag.get_task(task_id).unmap({"part": part})


def filled(bench, pairs, value="Tie"):
    names = blind_review.form_fields(bench.run, pairs)
    return {name: value if name.startswith("pair") else None for name in names}


def test_each_reviewer_is_asked_about_five_pairs_for_some_time(dag, bench, told, tmp_path):
    pod = dag.get_task("prepare_review")
    dealt = [(entry["reviewer"], [*entry["pairs"]]) for entry in pod.deal(bench.run)]
    first, second = [1, 2, 3, 4, 5], [6, 7, 8, 9, 10]
    assert dealt == [("ann", first), ("ben", first), ("ann", second), ("ben", second)]
    # Without a review nobody is asked, and no pod starts.
    with pytest.raises(AirflowSkipException, match="no review"):
        pod.execute(context(Lab(tmp_path, {}, "other"), pod))
    waiting = ask(bench, mapped(dag, "review_pairs", {"reviewer": "ben", "pairs": [6, 7]}))
    assert waiting.timeout == timedelta(hours=3)
    (detail,) = told
    assert [user["id"] for user in detail["assigned_users"]] == ["ben"]
    assert "### Pair 6" in detail["body"]
    assert "### Pair 8" not in detail["body"]
    fields = list(detail["params"].values())
    assert [field["schema"]["title"] for field in fields] == ["Pair 6", "Pair 7", "Comment"]
    assert detail["defaults"] == ["Skip the review"]


def test_votes_are_kept_under_the_user_that_airflow_recorded(dag, bench):
    for user in ("ann", "ben"):
        task = mapped(dag, "review_pairs", {"reviewer": user, "pairs": [6, 7]})
        reply(bench, task, user, "Send votes", filled(bench, [6, 7]))
    found = ballots.ballots(bench.run)
    assert [ballot.reviewer for ballot in found] == ["ann", "ben"]
    assert {mark.choice for ballot in found for mark in ballot.marks} == {"tie"}


@pytest.mark.parametrize(
    ("user", "option", "value", "error"),
    [
        # Airflow itself refuses strangers, but not where it can't tell who is meant.
        ("mallory", "Send votes", "Tie", r"mallory was not asked \(ann\)"),
        ("mallory", "Skip the review", "Tie", r"mallory was not asked \(ann\)"),
        ("ann", "Send votes", None, "no vote was given"),
        ("ann", "Skip the review", None, None),
        (None, "Skip the review", None, None),
    ],
)
def test_a_skipped_question_leaves_no_votes_and_a_wrong_answer_asks_again(
    dag, bench, user, option, value, error
):
    task = mapped(dag, "review_pairs", {"reviewer": "ann", "pairs": [6]})
    with pytest.raises(AirflowException, match=error) if error else contextlib.nullcontext():
        reply(bench, task, user, option, filled(bench, [6], value) if error else {})
    assert ballots.ballots(bench.run) == []
    assert dag.get_task("review_pairs").retries == 5


# Ids of users as FAB, which numbers them, and Keycloak give them.
FAB, KEYCLOAK = "7", "9b2c6f1e-6f0a-4c55-9f0e-0d1c3a5b7e11"


@pytest.mark.usefixtures("other_manager")
@pytest.mark.parametrize(("written", "user_id"), [(7, FAB), (KEYCLOAK, KEYCLOAK), (None, FAB)])
def test_a_reviewer_is_known_by_id_or_else_by_name(dag, tmp_path, told, written, user_id):
    reviewer = "ann" if written is None else {"id": written, "name": "ann"}
    bench = Lab(tmp_path, {"evaluation": {"review": True, "reviewers": [reviewer]}})
    prepared(bench)
    task = mapped(dag, "review_pairs", {"reviewer": "ann", "pairs": [6]})
    ask(bench, task)
    # Airflow would compare a name with ids, and let nobody answer.
    assert told[0]["assigned_users"] == (
        None if written is None else [{"id": user_id, "name": "ann"}]
    )
    votes = filled(bench, [6])
    with pytest.raises(AirflowException, match="ben was not asked"):
        reply(bench, task, ("8", "ben"), "Send votes", votes)
    reply(bench, task, (user_id, "ann"), "Send votes", votes)
    assert [ballot.reviewer for ballot in ballots.ballots(bench.run)] == ["ann"]


def test_the_question_of_a_model_with_messages_can_be_serialised():
    """Airflow stores the DAG; a mapped task's arguments are in it."""
    from airflow.sdk import DAG
    from airflow.serialization.serialized_objects import DagSerialization

    file = ModelFile.model_validate({"approvers": ["zoe"], "notify": {"webhook": "hook"}})
    with DAG("asks") as asks:
        people.review_pairs(Model("m", "", file), [{"reviewer": None, "pairs": [1]}])
    stored = DagSerialization.to_dict(asks)
    (task,) = (t["__var"] for t in stored["dag"]["tasks"])
    assert task["_is_mapped"] is True
    assert DagSerialization.from_dict(stored).get_task("review_pairs")


# The review of personal data.

DRAW = "0123456789ab"
SEND_FOUND, SKIP_ROWS = "Send what was found", "Skip these rows"


@pytest.fixture
def scrubbed(tmp_path):
    made = Lab(tmp_path, {"data": {"pii_review": "ask", "pii_review_hours": 3}})
    rows = [
        {"row_id": f"{n}", "row_hash": "h", "stratum": "other", "weight": 1.0,
         "text": f"user: call Zebulon {n}"}
        for n in range(12)
    ]  # fmt: skip
    sheet = json.dumps({"draw_id": DRAW, "rows": rows})
    made.leave("pii_scrubbing", {"review_sheet.json": sheet})
    return made


def cells(first=None, *, read=True):
    return {f"row_11_{DRAW}": first, f"row_12_{DRAW}": None, READ_ALL: read}


def test_rows_are_dealt_out_ten_at_a_time_and_shown_for_the_configured_time(
    dag, scrubbed, tmp_path, told
):
    deal = dag.get_task("pii_scrubbing").deal
    assert [len(form) for form in deal(scrubbed.run)] == [10, 2]
    assert deal(Lab(tmp_path, {}, "other").run) == []
    assert ask(scrubbed, mapped(dag, "review_rows", [11, 12])).timeout == timedelta(hours=3)
    assert "call Zebulon 10" in told[0]["body"]
    assert list(told[0]["params"]) == list(cells())
    assert told[0]["defaults"] == [SKIP_ROWS]


def test_what_was_found_is_kept_under_the_user_and_in_no_xcom(dag, scrubbed):
    task = mapped(dag, "review_rows", [11, 12])
    pushed = reply(scrubbed, task, "ann", SEND_FOUND, cells("PERSON: Zebulon"))
    assert pushed["params_input"] == {}
    (found,) = findings_of(scrubbed.run, DRAW)
    assert found.reviewer == "ann"
    assert found.missed == {11: [("PERSON", "Zebulon")], 12: []}


@pytest.mark.parametrize(
    ("asked", "option", "read", "error"),
    [
        ("7", SEND_FOUND, True, r"ann was not asked \(ann\)"),
        ("7", SKIP_ROWS, True, r"ann was not asked \(ann\)"),
        ("ann", SEND_FOUND, False, "tick that every row was read"),
        ("ann", SKIP_ROWS, True, None),
    ],
)
def test_skipped_rows_leave_nothing_and_a_wrong_answer_asks_again(
    dag, scrubbed, asked, option, read, error
):
    change_meta(scrubbed, approvers=[{"id": asked, "name": "ann"}])
    task = mapped(dag, "review_rows", [11, 12])
    with pytest.raises(AirflowException, match=error) if error else contextlib.nullcontext():
        reply(scrubbed, task, "ann", option, cells(read=read))
    assert list(findings_of(scrubbed.run, DRAW)) == []
    assert dag.get_task("review_rows").retries == 5


# Labels of production rows.


@pytest.fixture
def production(tmp_path, monkeypatch):
    """The store of a model with three open rows, and the task that asks about them."""
    uri = (tmp_path / "store").as_uri()
    model = SimpleNamespace(file=ModelFile())
    monkeypatch.setattr(people, "store_uri", lambda: uri)
    monkeypatch.setattr(people, "find_model", lambda _: model)
    rows = [
        labels.ReviewRow(
            f"req-{n}",
            "2026-03-04",
            [{"role": "user", "content": f"question {n}"}],
            "answer",
            "random",
            [],
            DataConfig(source="x"),
        )
        for n in range(3)
    ]
    monkeypatch.setattr(labels, "review_rows", lambda *_: iter(rows))
    return open_store(uri), people.label_rows(Model("support", "", ModelFile()))


def test_labels_that_were_filled_in_wait_for_the_scrubber(production, told, monkeypatch):
    store, task = production
    monkeypatch.setattr(labels, "people_per_label", lambda _: 2)
    ask(None, task)
    fields = dict.fromkeys(told[0]["params"])
    assert len(fields) == 6
    assert "question 2" in told[0]["body"]
    answers = {**fields, "decision_req-0": "accept"}
    for _ in range(2):
        with pytest.raises(TaskAwaitingInput):
            reply(None, task, ("7", "ann"), "Send labels", answers)
    reply(None, task, ("8", "ben"), "Send labels", answers)
    kept = map(store.get_bytes, store.keys("quarantine/answers/support"))
    assert sorted(json.loads(one)["by"] for one in kept) == ["ann", "ben"]
    assert list(store.keys("labels")) == []


def test_a_wrong_label_asks_again_and_leaves_nothing(production):
    store, task = production
    answers = {"decision_req-1": "correct", "corrected_req-1": ""}
    with pytest.raises(AirflowException, match="needs the corrected answer"):
        reply(None, task, ("7", "ann"), "Send labels", answers)
    assert list(store.keys("")) == []
