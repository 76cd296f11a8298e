import json

import pytest
from tests.lab.runs import dataset_rows, write_dataset

from tuneline.errors import UserError
from tuneline.evaluation import human_review, prepare_review
from tuneline.evaluation.holdout.ledger import holdout_sha256, read_ledger
from tuneline.evaluation.human_review import count, read_votes
from tuneline.harness.rows import of_split, read_rows


@pytest.fixture
def review(lab, tmp_path):
    """A run whose review is prepared, and its hidden key."""
    bench = lab(evaluation={"review": True, "review_pairs": 8})
    rows = dataset_rows({"train": 30, "validation": 5, "holdout": 12})
    data = write_dataset(tmp_path / "dataset.parquet", rows)
    bench.leave("distribution_balancing", {"dataset.parquet": data})
    bench.leave("production_quantization", {"choice.json": '{"sha256": "c0ffee"}'})
    answers = []
    for number, row in enumerate(r for r in rows if r["split"] == "holdout"):
        tuned = f'{{"intent": "login", "reply": "tuned {number}"}}'
        base = tuned if number < 2 else f"base prose {number}"
        answers.append({"row_id": row["row_id"], "expected": "x", "base": base, "tuned": tuned})
    lines = "\n".join(map(json.dumps, answers))
    bench.leave("holdout_performance", {"answers.jsonl": lines})
    record = bench.execute("prepare_review", prepare_review.run)
    ctx = bench.context("human_review")
    pairs = json.loads(ctx.input("prepare_review", "pairs.json").read_text())
    key = json.loads(ctx.input("prepare_review", "quarantine/review_key.json").read_text())
    return bench, record, pairs, key


def vote(bench, key, choose, reviewers=("alice",)):
    votes = [
        {"pair": entry["pair"], "choice": choose(entry), "reviewer": reviewer}
        for entry in key["pairs"]
        for reviewer in reviewers
    ]
    place = bench.run.key("evaluation", "review_votes.json")
    bench.run.store.put_bytes(place, json.dumps({"votes": votes}).encode())


def side_of(who):
    return lambda entry: "A" if entry["A"] == who else "B"


def test_pairs_are_blind(review):
    _, record, pairs, key = review
    assert len(pairs["pairs"]) == len(key["pairs"]) == 8
    shown = json.dumps(pairs)
    assert not any(f'"{row["row_id"]}"' in shown for row in key["pairs"])
    names = [artifact.name for artifact in record.artifacts]
    assert names == ["pairs.json", "quarantine/review_key.json"]
    assert "/quarantine/prepare_review/" in record.artifacts[1].uri
    assert sum(entry["A"] == "tuned" for entry in key["pairs"]) == 4
    for pair, entry in zip(pairs["pairs"], key["pairs"], strict=True):
        assert ("tuned" in pair["A"]) == (entry["A"] == "tuned")
        assert ("tuned" in pair["B"]) == (entry["B"] == "tuned")


def test_equal_answers_are_not_shown(review):
    _, record, _, key = review
    assert {"row-0035", "row-0036"}.isdisjoint(entry["row_id"] for entry in key["pairs"])
    assert {m.name: m.value for m in record.measurements}["identical_answers"] == 2


def test_sides_differ_from_one_preparation_to_the_next(review):
    bench, _, _, _ = review
    rows = read_rows(
        bench.context("human_review").input("distribution_balancing", "dataset.parquet")
    )
    held = of_split(rows, "holdout")
    answers = {row.row_id: {"base": "b", "tuned": "t"} for row in held}
    drawn = {
        tuple((k["row_id"], k["A"]) for k in prepare_review.shuffle_pairs(held, answers)[1])
        for _ in range(20)
    }
    assert len(drawn) == 20


def test_the_look_at_the_holdout_is_in_the_ledger(review):
    bench, _, _, _ = review
    rows = read_rows(
        bench.context("human_review").input("distribution_balancing", "dataset.parquet")
    )
    ledger = read_ledger(bench.run.store, holdout_sha256(of_split(rows, "holdout")))
    assert [(entry.purpose, entry.candidate_sha256) for entry in ledger] == [("review", "c0ffee")]


def test_clear_preference_for_the_tuned_model_passes(review):
    bench, _, _, key = review
    vote(bench, key, side_of("tuned"), ("alice", "bob"))
    evidence = bench.execute("human_review", human_review.run)
    assert evidence.verdict == "pass"
    found = {m.name: m.value for m in evidence.measurements}
    assert (found["votes"], found["wins"], found["win_rate"]) == (16, 8, 1.0)
    # Two reviewers on eight pairs are eight opinions: the sign test's p is 2/256, not 2/65536.
    assert found["sign_test_p"] == pytest.approx(2 / 256, abs=1e-5)
    assert "alice, bob" in evidence.summary


def test_clear_preference_for_the_base_fails(review):
    bench, _, _, key = review
    vote(bench, key, side_of("base"))
    evidence = bench.execute("human_review", human_review.run)
    assert evidence.verdict == "fail"


def test_an_even_vote_warns(review):
    bench, _, _, key = review
    vote(bench, key, lambda entry: "A")
    evidence = bench.execute("human_review", human_review.run)
    assert evidence.verdict == "warn"


def test_nobody_answered_is_said(review, tmp_path):
    bench, _, _, _ = review
    evidence = bench.execute("human_review", human_review.run)
    assert evidence.verdict == "warn"
    assert evidence.summary == "not reviewed: nobody answered"


def test_switched_off_is_said(lab):
    evidence = lab().execute("human_review", human_review.run)
    assert (evidence.verdict, evidence.summary) == (
        "warn",
        "not reviewed: the review is switched off",
    )


def test_wrong_votes_are_named():
    key = [{"pair": 1, "row_id": "r", "A": "tuned", "B": "base"}]
    good = {"pair": 1, "choice": "A", "reviewer": "alice"}
    for wrong, why in [
        ({"pair": 2}, "vote 2: there is no such pair"),
        ({"choice": "C"}, "vote 2: choice must be A, B or tie, not 'C'"),
        ({"reviewer": " "}, "vote 2: a vote needs the name"),
    ]:
        with pytest.raises(UserError, match=why):
            read_votes({"votes": [good, {**good, **wrong}]}, key, "votes.json")
    with pytest.raises(UserError, match="expected"):
        read_votes([good], key, "votes.json")


def test_the_last_vote_of_a_reviewer_counts():
    key = [{"pair": 1, "row_id": "r", "A": "tuned", "B": "base"}]
    first = {"pair": 1, "choice": "A", "reviewer": "alice"}
    votes = read_votes({"votes": [first, {**first, "choice": "B"}]}, key, "votes.json")
    outcome = count(votes, key)
    assert (outcome.votes, outcome.wins, outcome.losses) == (1, 0, 1)
