"""The blind review: pairs that are drawn and hidden, votes that count, and what they decide."""

import math

import pytest
from tests.lab.reviews import for_model, key_of, leave_answers, prepared, vote
from tests.lab.runs import broken, value, values

from tuneline.artifacts.evaluation import REVIEW_PAIRS, Ballot, KeyEntry, Mark, Vote
from tuneline.errors import UserError
from tuneline.evaluation.human_review import Preference, count
from tuneline.evaluation.prepare_review import DrawnPair, shuffle_pairs
from tuneline.evaluation.scoring.ledger import holdout_sha256, read_ledger
from tuneline.people import ballots
from tuneline.statistics import sign_test
from tuneline.step import store_output


@pytest.fixture
def review(lab):
    """A run whose review is prepared, and the hidden key."""
    bench = lab(evaluation={"review": True, "review_pairs": 8, "reviewers_per_pair": 1})
    return bench, prepared(bench, equal=2)


def judged(bench):
    evidence = bench.execute("human_review")
    return evidence, values(evidence)


def test_pairs_are_blind(review):
    bench, key = review
    record = bench.run.entry("prepare_review")
    pairs = REVIEW_PAIRS.find(bench.run).pairs
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
    # Equal answers are not shown.
    assert {"row-0035", "row-0036"}.isdisjoint(entry.row_id for entry in key)
    assert value(record, "identical_answers") == 2
    # The look at the hold-out is in the ledger.
    ledger = read_ledger(bench.run.store, holdout_sha256(bench.held_out()))
    assert [(entry.purpose, entry.candidate_sha256) for entry in ledger] == [("review", "c0ffee")]


def test_the_published_keys_of_the_documents(review):
    bench, _ = review
    sheet = bench.document("prepare_review", "pairs.json")
    assert list(sheet) == ["schema", "review_id", "instructions", "choices", "pairs"]
    assert sheet["schema"] == "tuneline/review/1"
    assert sheet["choices"] == ["A", "B", "tie", "both bad"]
    assert list(sheet["pairs"][0]) == ["pair", "prompt", "A", "B"]
    hidden = bench.document("prepare_review", "quarantine/review_key.json")
    assert list(hidden) == ["schema", "review_id", "pairs"]
    assert hidden["review_id"] == sheet["review_id"]
    assert list(hidden["pairs"][0]) == ["pair", "row_id", "A", "B", "stratum"]


def test_sides_differ_from_one_preparation_to_the_next(review):
    held = review[0].held_out()
    answers = {row.row_id: {"base": "b", "tuned": "t"} for row in held}
    chosen = [DrawnPair(row, "base") for row in held]
    keys = [shuffle_pairs(chosen, answers)[1] for _ in range(20)]
    assert len({tuple((k.row_id, k.A) for k in key) for key in keys}) == 20


def test_clear_preference_for_the_tuned_model_passes(review):
    bench, key = review
    vote(bench, key, for_model("tuned"), ("alice", "bob"), comment="too long, all of them")
    evidence, found = judged(bench)
    assert evidence.verdict == "pass"
    assert (found["votes"], found["wins"], found["win_rate"]) == (16, 8, 1.0)
    # Two reviewers on eight pairs are eight opinions: the sign test's p is 2/256, not 2/65536.
    assert found["sign_test_p"] == pytest.approx(2 / 256, abs=1e-5)
    assert "alice, bob" in evidence.summary
    kept = bench.document("human_review", "votes.json")
    assert kept["review_id"] == bench.document("prepare_review", "pairs.json")["review_id"]
    assert list(kept["votes"][0])[:3] == ["pair", "choice", "reviewer"]
    assert kept["comments"]["alice"] == ["too long, all of them"]
    assert sum("review_votes/" in ref.uri for ref in evidence.inputs) == 2


@pytest.mark.parametrize(
    ("choose", "verdict"), [(for_model("base"), "fail"), (lambda entry: "A", "warn")]
)
def test_a_preference_for_the_base_fails_and_an_even_vote_warns(review, choose, verdict):
    bench, key = review
    vote(bench, key, choose)
    assert bench.execute("human_review").verdict == verdict


@pytest.mark.parametrize(
    ("pairs", "alpha", "verdict", "needed"),
    [(4, 0.05, "inconclusive", 18), (5, 0.2, "pass", None), (5, 0.01, "inconclusive", 23)],
)
def test_few_pairs_decide_at_the_level_or_say_how_many_would(lab, pairs, alpha, verdict, needed):
    bench = lab(evaluation={"review": True, "review_pairs": pairs, "review_alpha": alpha})
    vote(bench, prepared(bench), for_model("tuned"))
    evidence, found = judged(bench)
    assert (evidence.verdict, found.get("pairs_needed")) == (verdict, needed)
    assert (f"about {needed} pairs would decide" in evidence.summary) is (needed is not None)


@pytest.mark.parametrize(
    ("profile", "required", "verdict"),
    [
        ("laptop", None, "warn"),
        ("production", None, "fail"),
        ("laptop", True, "fail"),
        ("production", False, "warn"),
    ],
)
def test_votes_can_be_required(lab, profile, required, verdict):
    bench = lab(profile=profile, evaluation={"review": True, "review_required": required})
    key = prepared(bench)
    evidence = bench.execute("human_review")
    assert (evidence.verdict, evidence.summary) == (verdict, "not reviewed: no one answered")
    vote(bench, key[1:], for_model("tuned"))
    evidence = bench.execute("human_review")
    assert evidence.verdict == verdict
    assert broken(evidence) == {"pairs_voted_on", "pairs_short_of_votes"}
    vote(bench, key[:1], for_model("tuned"), ("bob",))
    assert bench.execute("human_review").verdict == "pass"


def test_a_second_reviewer_overwrites_nothing_and_the_majority_decides(review):
    bench, key = review
    vote(bench, key, for_model("tuned"), ("alice", "bob"))
    vote(bench, key, for_model("base"), ("carol",))
    _, found = judged(bench)
    assert (found["reviewers"], found["votes"], found["wins"]) == (3, 24, 8)
    assert found["pairs_reviewers_disagree_on"] == 8
    # The last vote of a reviewer counts.
    vote(bench, key, for_model("base"), ("alice", "bob"))
    _, found = judged(bench)
    assert (found["votes"], found["losses"]) == (24, 8)


def test_each_pair_needs_as_many_votes_as_reviewers_were_asked(lab):
    names = ["alice", "bob", "carol"]
    bench = lab(evaluation={"review": True, "reviewers": names, "reviewers_per_pair": 3})
    key = prepared(bench)
    vote(bench, key, for_model("tuned"), ("alice", "bob"))
    evidence, found = judged(bench)
    assert evidence.verdict == "warn"
    assert found["pairs_short_of_votes"] == len(key) == 10


def test_votes_of_someone_who_is_not_assigned_do_not_count(lab):
    bench = lab(evaluation={"review": True, "reviewers": ["alice"]})
    key = prepared(bench)
    vote(bench, key, for_model("tuned"), ("mallory",))
    evidence = bench.execute("human_review")
    assert evidence.verdict == "warn"
    assert evidence.summary == (
        "not reviewed: no vote counts; 10 votes of mallory do not count, who is not assigned"
    )
    vote(bench, key, for_model("base"), ("alice",))
    evidence, found = judged(bench)
    assert evidence.verdict == "fail"
    assert found["votes_not_assigned"] == 10
    assert "mallory preferred" not in evidence.summary


def test_votes_of_an_earlier_review_do_not_count_for_a_new_key(review):
    bench, key = review
    vote(bench, key, for_model("tuned"))
    assert bench.execute("human_review").verdict == "pass"
    bench.execute("prepare_review")
    evidence, found = judged(bench)
    assert (evidence.verdict, found["votes_of_earlier_reviews"]) == ("warn", 8)
    said = "8 votes do not count, since they were given to pairs that were drawn"
    assert said in evidence.summary


@pytest.mark.parametrize("forged", ["sides", "review"])
def test_a_swapped_key_is_found_and_no_vote_is_counted(review, forged):
    bench, key = review
    vote(bench, key, for_model("base"))
    assert bench.execute("human_review").verdict == "fail"
    # The hash in the record is that of the other key, as a forger would leave it.
    ctx = bench.context("prepare_review")
    REVIEW_PAIRS.write(ctx, REVIEW_PAIRS.find(bench.run))
    swapped, own = key_of(bench).model_dump_json(by_alias=True), key_of(bench).review_id
    change = {"sides": str.maketrans("AB", "BA"), "review": {}}[forged]
    swapped = swapped.translate(change).replace(own, f"{own}0" if forged == "review" else own)
    (ctx.quarantine / "review_key.json").write_text(swapped)
    store_output(ctx, ctx.record("forged"))
    evidence, found = judged(bench)
    assert evidence.verdict == "fail"
    names = {"sides": "pairs_that_contradict_the_key", "review": "key_is_of_this_review"}
    assert broken(evidence) == {names[forged]}
    assert "no vote was counted" in evidence.summary
    assert "win_rate" not in found


def test_a_key_that_was_changed_in_place_is_refused(review):
    bench, key = review
    vote(bench, key, for_model("tuned"))
    path = bench.artifact("prepare_review", "quarantine/review_key.json")
    path.write_text(path.read_text().replace("tuned", "TUNED"))
    with pytest.raises(Exception, match=r"review_key\.json"):
        bench.execute("human_review")


def test_the_released_model_is_compared_too_and_its_preference_fails(lab):
    bench = lab(evaluation={"review": True, "reviewers_per_pair": 1})
    key = prepared(bench, released=True)
    assert [entry.other for entry in key].count("released") == 10
    for other in ("base", "released"):
        assert sum(entry.A == "tuned" for entry in key if entry.other == other) == 5
    worse = {"base": "tuned", "released": "released"}
    vote(bench, key, lambda entry: for_model(worse[entry.other])(entry))
    evidence, found = judged(bench)
    assert (evidence.verdict, broken(evidence)) == ("fail", {"released_preferred"})
    assert (found["wins"], found["released_losses"]) == (10, 10)
    vote(bench, key, for_model("tuned"))
    assert bench.execute("human_review").verdict == "pass"


def test_both_bad_counts_as_a_tie_and_is_reported_apart(review):
    bench, key = review
    choices = {entry.pair: "both bad" for entry in key[:2]}
    vote(bench, key, lambda entry: choices.get(entry.pair) or for_model("tuned")(entry))
    evidence, found = judged(bench)
    assert (found["wins"], found["ties"], found["both_bad"]) == (6, 2, 2)
    assert found["win_rate"] == 7 / 8
    assert "2 tied (2 of them with both answers bad)" in evidence.summary


@pytest.mark.parametrize(
    ("review", "why"), [(False, "the review is switched off"), (True, "nothing to prefer")]
)
def test_why_nobody_voted_is_said(lab, review, why):
    bench = lab(evaluation={"review": review})
    if review:
        assert prepared(bench, equal=12) == []
    evidence = bench.execute("human_review")
    assert evidence.verdict == "warn"
    assert evidence.summary.startswith("not reviewed: ")
    assert why in evidence.summary


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"marks": [Mark(pair=99, choice="A")]}, "there is no pair 99; the pairs are 1 to 8"),
        ({"marks": [Mark(pair=1, choice="C")]}, "'C' is not a choice; choose A, B, tie or both"),
        ({"reviewer": " "}, "needs the name of its reviewer"),
    ],
)
def test_wrong_votes_are_named(review, wrong, why):
    bench, _ = review
    known = {"reviewer": "alice", "source": "airflow", "at": "2026-01-01T00:00:00Z"}
    review_id = key_of(bench).review_id
    ballot = Ballot(review_id=review_id, marks=[Mark(pair=1, choice="A")], **known)
    document = ballots.document_of(review_id, "edited-by-hand")
    document.put(bench.run, ballot.model_copy(update=wrong))
    with pytest.raises(UserError, match=why):
        bench.execute("human_review")


@pytest.mark.parametrize("document", ['[{"pair": 1}]', '{"marks": [{"pair": 1}]}', "{"])
def test_votes_of_another_form_are_refused(review, document):
    bench, _ = review
    bench.run.store.put_bytes(bench.run.key(f"{ballots.FOLDER}/x/y.json"), document.encode())
    with pytest.raises(UserError, match=r"evaluation/review_votes/x/y\.json: "):
        bench.execute("human_review")


def test_votes_of_a_judge_of_an_earlier_version_do_not_count(review):
    bench, key = review
    vote(bench, key, for_model("base"), ("gpt",))
    (document,) = ballots.documents(bench.run)
    document.put(bench.run, ballots.ballots(bench.run)[0].model_copy(update={"judge": True}))
    assert bench.execute("human_review").summary == "not reviewed: no vote counts"
    vote(bench, key, for_model("tuned"))
    evidence, found = judged(bench)
    assert (evidence.verdict, found["reviewers"]) == ("pass", 1)


def test_answers_must_be_there_to_draw_from(lab):
    bench = lab(evaluation={"review": True})
    leave_answers(bench)
    bench.run.store.delete_prefix(bench.run.step_key("holdout_performance"))
    with pytest.raises(UserError, match="holdout_performance has not been run"):
        bench.execute("prepare_review")


KEY = {
    1: KeyEntry(pair=1, row_id="a", A="tuned", B="base"),
    2: KeyEntry(pair=2, row_id="b", A="base", B="tuned"),
}


@pytest.mark.parametrize(
    ("votes", "counted"),
    [
        # Sides are looked up, and a split pair is tied.
        ("alice 1 A, bob 1 B, alice 2 B, bob 2 both bad, carol 2 B", (1, 0, 1, 0)),
        # Both bad must be the opinion of most.
        ("alice 1 both bad, bob 1 both bad, carol 1 A", (1, 0, 0, 1)),
        ("alice 1 both bad, bob 1 A", (1, 0, 0, 0)),
    ],
)
def test_votes_are_counted_by_pair(votes, counted):
    given = [vote.split(maxsplit=2) for vote in votes.split(", ")]
    found = count([Vote(pair=int(p), choice=c, reviewer=name) for name, p, c in given], KEY)
    assert (found.wins, found.losses, found.ties, found.both_bad) == counted
    assert found.reviewers == tuple(sorted({name for name, _, _ in given}))
    assert found.votes == len(given)


def power(pairs, p, alpha):
    """Probability that the sign test decides for the more frequent side, by enumeration."""
    return sum(
        math.comb(pairs, k) * p**k * (1 - p) ** (pairs - k)
        for k in range(pairs + 1)
        if k > pairs / 2 and sign_test(k, pairs - k) <= alpha
    )


@pytest.mark.parametrize(("wins", "losses"), [(4, 0), (5, 3), (12, 6), (7, 2)])
def test_the_pairs_that_are_said_to_be_needed_would_decide(wins, losses):
    outcome = Preference(wins, losses, 0, 0, ("alice",), wins + losses)
    needed, share = outcome.pairs_needed(0.05), (wins + 1) / (wins + losses + 2)
    # Noether's size is an approximation: within a few points of the 80 % that it aims at.
    assert 0.72 <= power(needed, share, 0.05) <= 0.9
    # Ties come on top.
    few, many = (Preference(6, 2, ties, 0, ("a",), 8).pairs_needed(0.05) for ties in (0, 8))
    assert abs(many - 2 * few) <= 1
