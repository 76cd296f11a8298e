"""The questions of the review: who is asked about which pairs, and what is kept of the answers."""

from datetime import UTC, datetime, timedelta

import pytest
from airflow.sdk import TriggerRule
from airflow.sdk.exceptions import AirflowException, AirflowSkipException, TaskAwaitingInput
from tests.lab.reviews import prepared
from tests.lab.runs import Lab
from tests.lab.tasks import context_of

from tuneline.config import Model, ModelFile
from tuneline.people import ballots, blind_review
from tuneline_airflow.people import review_pairs


@pytest.fixture
def bench(tmp_path):
    settings = {"review": True, "reviewers": ["ann", "ben"], "review_hours": 3}
    made = Lab(tmp_path, {"evaluation": settings})
    prepared(made)
    return made


def operator(dag, assignment):
    """The operator of one mapped task, as a worker makes it."""
    return dag.get_task("review_pairs").unmap({"assignment": assignment})


def context(bench):
    made = context_of("review_pairs", prepared={"return_value": bench.run.uri})
    made["ti"].id = "7"
    return {**made, "task_instance": made["ti"]}


@pytest.fixture
def asked(monkeypatch):
    """What Airflow was told of each question."""
    told = []
    place = "airflow.providers.standard.operators.hitl.upsert_hitl_detail"
    monkeypatch.setattr(place, lambda **detail: told.append(detail))
    return told


def answer(params, user="ann", option="Send votes"):
    return {
        "chosen_options": [option],
        "params_input": params,
        "responded_at": datetime.now(UTC),
        "responded_by_user": {"id": user, "name": user} if user else None,
    }


def test_each_reviewer_is_asked_about_five_pairs_at_a_time(dag, bench):
    dealt = dag.get_task("prepare_review").deal(bench.run)
    assert [(entry["reviewer"], list(entry["pairs"])) for entry in dealt] == [
        ("ann", [1, 2, 3, 4, 5]),
        ("ben", [1, 2, 3, 4, 5]),
        ("ann", [6, 7, 8, 9, 10]),
        ("ben", [6, 7, 8, 9, 10]),
    ]


def test_without_a_review_nobody_is_asked_and_no_pod_starts(dag, tmp_path):
    prepared = {"return_value": Lab(tmp_path, {}).run.uri}
    with pytest.raises(AirflowSkipException, match="no review"):
        dag.get_task("prepare_review").execute(context_of("prepare_review", prepared=prepared))


def test_a_question_names_its_reviewer_its_pairs_and_its_time(dag, bench, asked):
    task = operator(dag, {"reviewer": "ben", "pairs": [6, 7]})
    with pytest.raises(TaskAwaitingInput) as waiting:
        task.execute(context(bench))
    assert waiting.value.timeout == timedelta(hours=3)
    (detail,) = asked
    assert [user["id"] for user in detail["assigned_users"]] == ["ben"]
    assert "### Pair 6" in detail["body"]
    assert "### Pair 8" not in detail["body"]
    fields = list(detail["params"].values())
    assert [field["schema"]["title"] for field in fields] == ["Pair 6", "Pair 7", "Comment"]
    assert detail["defaults"] == ["Skip the review"]


def filled(bench, pairs, value="Tie"):
    names = blind_review.form_fields(bench.run, pairs)
    return {name: value if name.startswith("pair") else None for name in names}


def test_the_answer_is_kept_under_the_user_that_airflow_recorded(dag, bench):
    for user in ("ann", "ben"):
        task = operator(dag, {"reviewer": user, "pairs": [6, 7]})
        task.execute_complete(context(bench), answer(filled(bench, [6, 7]), user))
    found = ballots.ballots(bench.run)
    assert [ballot.reviewer for ballot in found] == ["ann", "ben"]
    assert {mark.choice for ballot in found for mark in ballot.marks} == {"tie"}


@pytest.mark.parametrize("option", ["Send votes", "Skip the review"])
def test_an_answer_by_someone_who_is_not_assigned_asks_again(dag, bench, option):
    """Airflow itself refuses it, but not where it can't tell who is meant."""
    task = operator(dag, {"reviewer": "ann", "pairs": [6]})
    with pytest.raises(AirflowException, match=r"mallory was not asked \(ann\)"):
        task.execute_complete(context(bench), answer(filled(bench, [6]), "mallory", option))
    assert ballots.ballots(bench.run) == []


# Ids of users as FAB, which numbers them, and Keycloak give them.
FAB, KEYCLOAK = "7", "9b2c6f1e-6f0a-4c55-9f0e-0d1c3a5b7e11"


@pytest.mark.usefixtures("other_manager")
@pytest.mark.parametrize(("written", "user_id"), [(7, FAB), (KEYCLOAK, KEYCLOAK), (None, FAB)])
def test_a_reviewer_is_known_by_id_or_else_by_name(dag, tmp_path, asked, written, user_id):
    reviewer = "ann" if written is None else {"id": written, "name": "ann"}
    bench = Lab(tmp_path, {"evaluation": {"review": True, "reviewers": [reviewer]}})
    prepared(bench)
    task = operator(dag, {"reviewer": "ann", "pairs": [6]})
    with pytest.raises(TaskAwaitingInput):
        task.execute(context(bench))
    # Airflow would compare a name with ids, and let nobody answer.
    known = None if written is None else [{"id": user_id, "name": "ann"}]
    assert asked[0]["assigned_users"] == known
    given = answer(filled(bench, [6]))
    other = {**given, "responded_by_user": {"id": "8", "name": "ben"}}
    with pytest.raises(AirflowException, match="ben was not asked"):
        task.execute_complete(context(bench), other)
    given["responded_by_user"] = {"id": user_id, "name": "ann"}
    task.execute_complete(context(bench), given)
    assert [ballot.reviewer for ballot in ballots.ballots(bench.run)] == ["ann"]


@pytest.fixture
def other_manager(monkeypatch):
    """Airflow with an auth manager whose ids are not the users' names."""
    place = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", place)


@pytest.mark.parametrize("user", [None, "ann"])
def test_a_skipped_question_and_one_without_an_answer_leave_no_votes(dag, bench, user):
    task = operator(dag, {"reviewer": "ann", "pairs": [6]})
    task.execute_complete(context(bench), answer({}, user, "Skip the review"))
    assert ballots.ballots(bench.run) == []


def test_votes_that_cannot_be_stored_fail_the_task_which_asks_again(dag, bench):
    task = operator(dag, {"reviewer": "ann", "pairs": [6]})
    with pytest.raises(AirflowException, match="no vote was given"):
        task.execute_complete(context(bench), answer(filled(bench, [6], None)))
    assert dag.get_task("review_pairs").retries == 5


def test_the_question_of_a_model_with_messages_can_be_serialised():
    """Airflow stores the DAG; a mapped task's arguments are in it."""
    from airflow.sdk import DAG
    from airflow.serialization.serialized_objects import DagSerialization

    file = ModelFile.model_validate({"approvers": ["zoe"], "notify": {"webhook": "hook"}})
    with DAG("asks") as asks:
        review_pairs(Model("m", "", file), [{"reviewer": None, "pairs": [1]}])
    stored = DagSerialization.to_dict(asks)["dag"]["tasks"]
    (mapped,) = [t["__var"] for t in stored if t["__var"]["task_id"] == "review_pairs"]
    assert mapped["_is_mapped"] is True
    assert DagSerialization.from_dict(DagSerialization.to_dict(asks)).get_task("review_pairs")


def test_the_item_runs_after_the_questions_whether_they_were_asked_or_not(dag):
    item = dag.get_task("human_review")
    assert item.trigger_rule == TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS
    assert "review_pairs" in item.upstream_task_ids
