import json

from tests.lab.runs import Lab

from tuneline import human_answers
from tuneline.verdicts import valid_waivers


def make_run(tmp_path, waivers=()):
    return Lab(tmp_path, {"waivers": list(waivers)}).run


CRITICAL = {"item": "pii_scrubbing", "reason": "synthetic data only"}
OPTIONAL = {"item": "cold_start", "reason": "served from a warm pool"}


def test_a_critical_waiver_counts_only_once_a_person_approved_it(tmp_path):
    run = make_run(tmp_path, [CRITICAL, OPTIONAL])
    assert [w.item for w in human_answers.critical_waivers(run)] == ["pii_scrubbing"]
    human_answers.record_waivers(run, "alice")
    assert set(valid_waivers(run)) == {"cold_start"}
    human_answers.record_waivers(run, "alice", "bob")
    waivers = valid_waivers(run)
    assert waivers["pii_scrubbing"].critical_approved_by == "bob"
    assert waivers["cold_start"].critical_approved_by is None
    assert {w.by for w in waivers.values()} == {"alice"}


def test_waivers_of_a_run_that_nobody_started_do_not_count(tmp_path):
    run = make_run(tmp_path, [OPTIONAL])
    human_answers.record_waivers(run, None)
    assert valid_waivers(run) == {}


def test_a_run_without_waivers_leaves_no_file(tmp_path):
    run = make_run(tmp_path)
    human_answers.record_waivers(run, "alice")
    assert not run.store.exists(run.key("waivers.json"))


def test_approvals_are_kept_in_order(tmp_path):
    run = make_run(tmp_path)
    human_answers.record_approval(run, "approve_release", "Reject", "bob")
    human_answers.record_approval(run, "approve_release", "Approve", "carol")
    kept = json.loads(run.store.get_bytes(run.key("approvals.json")))["approvals"]
    assert [(a["decision"], a["by"]) for a in kept] == [("Reject", "bob"), ("Approve", "carol")]
