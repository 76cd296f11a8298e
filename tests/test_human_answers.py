import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.runs import Lab

from tuneline import human_answers
from tuneline.artifacts.evaluation import REVIEW_PAIRS
from tuneline.errors import UserError
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


def prepare_pairs(run, pairs):
    sheet = {"instructions": "Read both.", "pairs": pairs}
    run.store.put_bytes(REVIEW_PAIRS.key(run), json.dumps(sheet).encode())


def test_votes_are_stored_under_the_reviewers_name(tmp_path):
    run = make_run(tmp_path)
    prepare_pairs(run, [{"pair": n, "prompt": "q", "A": "a", "B": "b"} for n in (1, 2, 3)])
    assert human_answers.record_votes(run, "1 A\n2: b\npair 3 - Tie\n", "dora") == 3
    kept = json.loads(run.store.get_bytes(run.key("evaluation/review_votes.json")))["votes"]
    assert kept == [
        {"pair": 1, "choice": "A", "reviewer": "dora"},
        {"pair": 2, "choice": "B", "reviewer": "dora"},
        {"pair": 3, "choice": "tie", "reviewer": "dora"},
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no vote was given"),
        ("1 A\n2 C", "line 2"),
        ("7 A", "there is no pair 7"),
        ("A", "is not a vote"),
    ],
)
def test_a_wrong_vote_is_named(text, why):
    with pytest.raises(UserError, match=why):
        human_answers.parse_votes(text, [1, 2])


@given(
    st.dictionaries(
        st.integers(1, 50), st.sampled_from(["A", "B", "tie"]), min_size=1, max_size=50
    ),
    st.sampled_from([" ", ": ", "=", ". ", ") ", "-"]),
)
def test_whatever_is_voted_is_read_back(votes, mark):
    text = "\n".join(f"{pair}{mark}{choice}" for pair, choice in votes.items())
    assert human_answers.parse_votes(text, range(1, 51)) == votes


def test_an_answer_cannot_break_out_of_its_quotes(tmp_path):
    run = make_run(tmp_path)
    evil = "```\n<img src=x>\n# heading\n````"
    prepare_pairs(run, [{"pair": 1, "prompt": "q", "A": evil, "B": "b"}])
    sheet = human_answers.review_sheet(run)
    assert f"`````\n{evil}\n`````" in sheet


def test_a_review_that_was_not_prepared_is_said(tmp_path):
    with pytest.raises(UserError, match="was not prepared"):
        human_answers.review_sheet(make_run(tmp_path))
