import json

import pytest
from tests.lab.runs import dataset_rows, value, values

from tuneline.artifacts.evaluation import (
    REVIEW_KEY,
    REVIEW_PAIRS,
    REVIEW_VOTES,
    AnswerPair,
    KeyEntry,
    ReviewVotes,
    Vote,
)
from tuneline.errors import UserError
from tuneline.evaluation import prepare_review
from tuneline.evaluation.holdout.ledger import holdout_sha256, read_ledger
from tuneline.evaluation.human_review import check_votes, count

KEY = [KeyEntry(pair=1, row_id="r", A="tuned", B="base")]
ALICE = Vote(pair=1, choice="A", reviewer="alice")


@pytest.fixture
def review(lab):
    """A run whose review is prepared, its record, the pairs and the hidden key."""
    bench = lab(evaluation={"review": True, "review_pairs": 8})
    rows = dataset_rows({"train": 30, "validation": 5, "holdout": 12})
    bench.leave_dataset(rows)
    choice = '{"variant": "f16", "sha256": "c0ffee"}'
    bench.leave("production_quantization", {"choice.json": choice})
    answers = []
    for number, row in enumerate(r for r in rows if r["split"] == "holdout"):
        tuned = f'{{"intent": "login", "reply": "tuned {number}"}}'
        base = tuned if number < 2 else f"base prose {number}"
        answers.append({"row_id": row["row_id"], "expected": "x", "base": base, "tuned": tuned})
    lines = "\n".join(map(json.dumps, answers))
    bench.leave("holdout_performance", {"answers.jsonl": lines})
    record = bench.execute("prepare_review")
    ctx = bench.context("human_review")
    return bench, record, REVIEW_PAIRS.read(ctx).pairs, REVIEW_KEY.read(ctx).pairs


def vote(bench, key, choose, reviewers=("alice",)):
    votes = [
        Vote(pair=entry.pair, choice=choose(entry), reviewer=reviewer)
        for entry in key
        for reviewer in reviewers
    ]
    REVIEW_VOTES.put(bench.run, ReviewVotes(votes=votes))


def side_of(who):
    return lambda entry: "A" if who == entry.A else "B"


def test_pairs_are_blind(review):
    bench, record, pairs, key = review
    assert len(pairs) == len(key) == 8
    shown = bench.artifact("prepare_review", "pairs.json").read_text()
    assert not any(f'"{entry.row_id}"' in shown for entry in key)
    names = [artifact.name for artifact in record.artifacts]
    assert names == ["pairs.json", "quarantine/review_key.json"]
    assert "/quarantine/prepare_review/" in record.artifacts[1].uri
    assert sum(entry.A == "tuned" for entry in key) == 4
    for pair, entry in zip(pairs, key, strict=True):
        assert ("tuned" in pair.A) == (entry.A == "tuned")
        assert ("tuned" in pair.B) == (entry.B == "tuned")


def test_the_published_keys_of_the_documents(review):
    bench, *_ = review
    sheet = bench.document("prepare_review", "pairs.json")
    assert list(sheet) == ["schema", "review_id", "instructions", "choices", "pairs"]
    assert (sheet["schema"], sheet["choices"]) == ("tuneline/review/1", ["A", "B", "tie"])
    assert list(sheet["pairs"][0]) == ["pair", "prompt", "A", "B"]
    hidden = bench.document("prepare_review", "quarantine/review_key.json")
    assert list(hidden) == ["schema", "review_id", "pairs"]
    assert hidden["review_id"] == sheet["review_id"]
    assert list(hidden["pairs"][0]) == ["pair", "row_id", "A", "B"]


def test_equal_answers_are_not_shown(review):
    _, record, _, key = review
    assert {"row-0035", "row-0036"}.isdisjoint(entry.row_id for entry in key)
    assert value(record, "identical_answers") == 2


def test_sides_differ_from_one_preparation_to_the_next(review):
    held = review[0].held_out()
    answers = {row.row_id: AnswerPair(row_id=row.row_id, base="b", tuned="t") for row in held}
    drawn = {
        tuple((k.row_id, k.A) for k in prepare_review.shuffle_pairs(held, answers)[1])
        for _ in range(20)
    }
    assert len(drawn) == 20


def test_the_look_at_the_holdout_is_in_the_ledger(review):
    bench, *_ = review
    ledger = read_ledger(bench.run.store, holdout_sha256(bench.held_out()))
    assert [(entry.purpose, entry.candidate_sha256) for entry in ledger] == [("review", "c0ffee")]


def test_clear_preference_for_the_tuned_model_passes(review):
    bench, _, _, key = review
    vote(bench, key, side_of("tuned"), ("alice", "bob"))
    evidence = bench.execute("human_review")
    assert evidence.verdict == "pass"
    found = values(evidence)
    assert (found["votes"], found["wins"], found["win_rate"]) == (16, 8, 1.0)
    # Two reviewers on eight pairs are eight opinions: the sign test's p is 2/256, not 2/65536.
    assert found["sign_test_p"] == pytest.approx(2 / 256, abs=1e-5)
    assert "alice, bob" in evidence.summary
    kept = bench.document("human_review", "votes.json")
    assert kept["review_id"] == bench.document("prepare_review", "pairs.json")["review_id"]
    assert list(kept["votes"][0]) == ["pair", "choice", "reviewer"]
    assert "review_votes.json" in {ref.name for ref in evidence.inputs}


@pytest.mark.parametrize(
    ("choose", "verdict"), [(side_of("base"), "fail"), (lambda entry: "A", "warn")]
)
def test_a_preference_for_the_base_fails_and_an_even_vote_warns(review, choose, verdict):
    bench, _, _, key = review
    vote(bench, key, choose)
    assert bench.execute("human_review").verdict == verdict


@pytest.mark.parametrize("cast", [None, ReviewVotes(votes=[])])
def test_nobody_answered_is_said(review, cast):
    bench, *_ = review
    if cast is not None:
        REVIEW_VOTES.put(bench.run, cast)
    evidence = bench.execute("human_review")
    assert (evidence.verdict, evidence.summary) == ("warn", "not reviewed: nobody answered")


def test_switched_off_is_said(lab):
    evidence = lab().execute("human_review")
    assert (evidence.verdict, evidence.summary) == (
        "warn",
        "not reviewed: the review is switched off",
    )


def test_wrong_votes_are_named():
    for wrong, why in [
        ({"pair": 2}, "vote 2: there is no such pair"),
        ({"choice": "C"}, "vote 2: choice must be A, B or tie, not 'C'"),
        ({"reviewer": " "}, "vote 2: a vote needs the name"),
    ]:
        with pytest.raises(UserError, match=why):
            check_votes([ALICE, ALICE.model_copy(update=wrong)], KEY, "votes.json")


@pytest.mark.parametrize("document", [[ALICE.model_dump()], {"votes": [{"pair": 1}]}, "{"])
def test_votes_of_another_form_are_refused(review, document):
    bench, *_ = review
    raw = document if isinstance(document, str) else json.dumps(document)
    bench.run.store.put_bytes(REVIEW_VOTES.key(bench.run), raw.encode())
    with pytest.raises(UserError, match=r"evaluation/review_votes\.json: "):
        bench.execute("human_review")


def test_the_last_vote_of_a_reviewer_counts():
    votes = check_votes([ALICE, ALICE.model_copy(update={"choice": "B"})], KEY, "votes.json")
    outcome = count(votes, KEY)
    assert (outcome.votes, outcome.wins, outcome.losses) == (1, 0, 1)
