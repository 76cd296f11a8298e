import json

import pytest
from tests.lab.runs import Lab

from tuneline.artifacts.answers import Person
from tuneline.errors import UserError
from tuneline.people import approvals
from tuneline.verdicts import valid_waivers

WHY = "looked at the rows with the owner"


def make_run(tmp_path, waivers=()):
    return Lab(tmp_path, {"waivers": list(waivers)}).run


def approved(run, name):
    return approvals.record_approval(run, "approve_waivers", "Approve", Person(name), WHY)


CRITICAL = {"item": "pii_scrubbing", "reason": "synthetic data only"}
OPTIONAL = {"item": "cold_start", "reason": "served from a warm pool"}


def test_a_critical_waiver_counts_only_once_a_person_approved_it(tmp_path):
    run = make_run(tmp_path, [CRITICAL, OPTIONAL])
    assert [w.item for w in approvals.critical_waivers(run)] == ["pii_scrubbing"]
    approvals.record_waivers(run, "alice")
    assert set(valid_waivers(run)) == {"cold_start"}
    approvals.note_question(run, "approve_waivers")
    approvals.record_waivers(run, "alice", approved(run, "bob"))
    waivers = valid_waivers(run)
    assert waivers["pii_scrubbing"].approved_by == "bob"
    assert waivers["pii_scrubbing"].approval.reason == WHY
    assert waivers["cold_start"].approved_by is None
    assert {w.by for w in waivers.values()} == {"alice"}


def test_waivers_of_a_run_that_nobody_started_do_not_count(tmp_path):
    run = make_run(tmp_path, [OPTIONAL])
    approvals.record_waivers(run, None)
    assert valid_waivers(run) == {}
    run = make_run(tmp_path / "other")
    approvals.record_waivers(run, "alice")
    assert not run.store.exists(run.key("waivers.json"))


def test_approvals_are_kept_in_order(tmp_path):
    run = make_run(tmp_path)
    approvals.record_approval(run, "approve_release", "Reject", Person("bob"))
    approvals.record_approval(run, "approve_release", "Approve", Person("carol", "7"))
    kept = json.loads(run.store.get_bytes(run.key("approvals.json")))["approvals"]
    assert [(a["decision"], a["by"]) for a in kept] == [("Reject", "bob"), ("Approve", "carol")]


def test_an_approval_of_waivers_counts_for_its_own_run_alone(tmp_path):
    """Two runs of one configuration: the answer of one is copied into the other."""
    runs = [Lab(tmp_path, {"waivers": [CRITICAL]}, name).run for name in ("one", "two")]
    approvals.note_question(runs[0], "approve_waivers")
    approvals.record_waivers(runs[0], "alice", approved(runs[0], "bob"))
    copied = runs[0].store.get_bytes(runs[0].key("waivers.json"))
    runs[1].store.put_bytes(runs[1].key("waivers.json"), copied)
    assert [set(valid_waivers(run)) for run in runs] == [{"pii_scrubbing"}, set()]


@pytest.mark.parametrize("reason", ["", "ok", "          "])
def test_accepting_a_waiver_needs_a_reason(tmp_path, reason):
    run = make_run(tmp_path, [CRITICAL])
    with pytest.raises(UserError, match="needs a reason of at least 10 characters"):
        approvals.record_approval(run, "approve_waivers", "Approve", Person("bob"), reason)
    assert not run.store.exists(run.key("approvals.json"))
    approvals.record_approval(run, "approve_waivers", "Reject", Person("bob"), reason)


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
    approvals.note_question(run, "approve_waivers")
    if why is None:
        approvals.record_approval(run, "approve_waivers", "Approve", person, WHY)
        return
    with pytest.raises(UserError) as refused:
        approvals.record_approval(run, "approve_waivers", "Approve", person, WHY)
    assert why in str(refused.value)


@pytest.mark.parametrize("name", ["Anonymous", "unknown", ""])
def test_nobody_in_particular_approves_nothing_in_production(tmp_path, name):
    run = Lab(tmp_path, {"profile": "production"}).run
    with pytest.raises(UserError, match="has no manifest to approve; run lineage first"):
        approvals.note_question(run, "approve_release")
    with pytest.raises(UserError, match="Airflow does not know who answered"):
        approvals.record_approval(run, "approve_waivers", "Approve", Person(name), WHY)
