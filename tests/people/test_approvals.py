import pytest
from tests.lab.runs import Lab

from tuneline.artifacts.answers import Person
from tuneline.errors import UserError
from tuneline.people import approvals

WHY = "looked at the rows with the owner"


CRITICAL = {
    "item": "pii_scrubbing",
    "measurement": "residual_rows",
    "up_to": 3,
    "reason": "synthetic data only",
}


@pytest.mark.parametrize("reason", ["", "ok", "          "])
def test_accepting_a_waiver_needs_a_reason(tmp_path, reason):
    run = Lab(tmp_path, {"waivers": [CRITICAL]}).run
    with pytest.raises(UserError, match="needs a reason of at least 10 characters"):
        approvals.record_approval(run, "approve_release", "Approve", Person("bob"), reason)
    assert not run.store.exists(run.key("approvals.json"))
    approvals.record_approval(run, "approve_release", "Reject", Person("bob"), reason)


@pytest.mark.parametrize(
    ("person", "profile", "why"),
    [
        (Person("mallory"), "laptop", "mallory is not an approver (bob, alice)"),
        (Person("alice"), "production", "alice started the run"),
        (Person(""), "production", "nobody is not an approver"),
        (Person("alice"), "laptop", None),
        (Person("bob"), "production", None),
        (Person("Robert", "bob"), "production", None),
    ],
)
def test_who_may_approve(tmp_path, person, profile, why):
    run = Lab(tmp_path, {"profile": profile}).run
    run.meta.update(approvers=["bob", "alice"], started_by="alice")
    if why is None:
        approvals.record_approval(run, "approve_release", "Approve", person, WHY)
        return
    with pytest.raises(UserError) as refused:
        approvals.record_approval(run, "approve_release", "Approve", person, WHY)
    assert why in str(refused.value)


@pytest.mark.parametrize("name", ["Anonymous", "unknown", ""])
def test_nobody_in_particular_approves_nothing_in_production(tmp_path, name):
    run = Lab(tmp_path, {"profile": "production"}).run
    with pytest.raises(UserError, match="has no manifest to approve; run lineage first"):
        approvals.note_question(run, "approve_release")
    with pytest.raises(UserError, match="Airflow does not know who answered"):
        approvals.record_approval(run, "approve_release", "Approve", Person(name), WHY)
