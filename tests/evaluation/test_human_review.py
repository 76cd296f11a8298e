import json

import pytest
from tests.lab.reviews import for_model, key_of, leave_answers, prepared, vote
from tests.lab.runs import broken, value, values

from tuneline.artifacts.evaluation import REVIEW_PAIRS, Ballot, Mark
from tuneline.errors import UserError
from tuneline.evaluation import prepare_review
from tuneline.evaluation.prepare_review import DrawnPair
from tuneline.evaluation.scoring.ledger import holdout_sha256, read_ledger
from tuneline.people import ballots


@pytest.fixture
def review(lab):
    """A run whose review is prepared, and the hidden key."""
    bench = lab(evaluation={"review": True, "review_pairs": 8, "reviewers_per_pair": 1})
    return bench, prepared(bench, equal=2)


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


def test_equal_answers_are_not_shown(review):
    bench, key = review
    assert {"row-0035", "row-0036"}.isdisjoint(entry.row_id for entry in key)
    assert value(bench.run.entry("prepare_review"), "identical_answers") == 2


def test_sides_differ_from_one_preparation_to_the_next(review):
    held = review[0].held_out()
    answers = {row.row_id: {"base": "b", "tuned": "t"} for row in held}
    chosen = [DrawnPair(row, "base") for row in held]
    drawn = {
        tuple((k.row_id, k.A) for k in prepare_review.shuffle_pairs(chosen, answers)[1])
        for _ in range(20)
    }
    assert len(drawn) == 20


def test_the_look_at_the_holdout_is_in_the_ledger(review):
    bench, _ = review
    ledger = read_ledger(bench.run.store, holdout_sha256(bench.held_out()))
    assert [(entry.purpose, entry.candidate_sha256) for entry in ledger] == [("review", "c0ffee")]


def test_clear_preference_for_the_tuned_model_passes(review):
    bench, key = review
    vote(bench, key, for_model("tuned"), ("alice", "bob"))
    evidence = bench.execute("human_review")
    assert evidence.verdict == "pass"
    found = values(evidence)
    assert (found["votes"], found["wins"], found["win_rate"]) == (16, 8, 1.0)
    # Two reviewers on eight pairs are eight opinions: the sign test's p is 2/256, not 2/65536.
    assert found["sign_test_p"] == pytest.approx(2 / 256, abs=1e-5)
    assert "alice, bob" in evidence.summary
    kept = bench.document("human_review", "votes.json")
    assert kept["review_id"] == bench.document("prepare_review", "pairs.json")["review_id"]
    assert list(kept["votes"][0])[:3] == ["pair", "choice", "reviewer"]
    assert sum("review_votes/" in ref.uri for ref in evidence.inputs) == 2


@pytest.mark.parametrize(
    ("choose", "verdict"), [(for_model("base"), "fail"), (lambda entry: "A", "warn")]
)
def test_a_preference_for_the_base_fails_and_an_even_vote_warns(review, choose, verdict):
    bench, key = review
    vote(bench, key, choose)
    assert bench.execute("human_review").verdict == verdict


def test_four_of_four_votes_are_inconclusive_and_say_how_many_pairs_would_do(lab):
    bench = lab(evaluation={"review": True, "review_pairs": 4, "reviewers_per_pair": 1})
    vote(bench, prepared(bench), for_model("tuned"))
    evidence = bench.execute("human_review")
    assert evidence.verdict == "inconclusive"
    assert broken(evidence) == {"sign_test_p"}
    assert value(evidence, "sign_test_p") == 0.125
    assert value(evidence, "pairs_needed") == 18
    assert "about 18 pairs would decide" in evidence.summary


@pytest.mark.parametrize(("alpha", "verdict"), [(0.2, "pass"), (0.01, "inconclusive")])
def test_the_level_of_the_sign_test_is_a_setting(lab, alpha, verdict):
    settings = {"review": True, "review_pairs": 5, "review_alpha": alpha}
    bench = lab(evaluation=settings)
    vote(bench, prepared(bench), for_model("tuned"))
    assert bench.execute("human_review").verdict == verdict


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
    assert bench.execute("human_review").verdict == verdict
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
    evidence = bench.execute("human_review")
    found = values(evidence)
    assert (found["reviewers"], found["votes"], found["wins"]) == (3, 24, 8)
    assert found["pairs_with_several_votes"] == 8
    # 16 votes for the tuned model and 8 for the base, as unlike within pairs as can be.
    assert found["krippendorff_alpha"] == pytest.approx(1 - 23 * (8 * 2) / (2 * 16 * 8), abs=1e-4)


def test_each_pair_needs_as_many_votes_as_reviewers_were_asked(lab):
    names = ["alice", "bob", "carol"]
    bench = lab(evaluation={"review": True, "reviewers": names, "reviewers_per_pair": 3})
    key = prepared(bench)
    vote(bench, key, for_model("tuned"), ("alice", "bob"))
    evidence = bench.execute("human_review")
    assert evidence.verdict == "warn"
    assert value(evidence, "pairs_short_of_votes") == len(key) == 10


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
    evidence = bench.execute("human_review")
    assert evidence.verdict == "fail"
    assert value(evidence, "votes_not_assigned") == 10
    assert "mallory preferred" not in evidence.summary


def test_votes_of_an_earlier_review_do_not_count_for_a_new_key(review):
    bench, key = review
    vote(bench, key, for_model("tuned"))
    assert bench.execute("human_review").verdict == "pass"
    bench.execute("prepare_review")
    evidence = bench.execute("human_review")
    assert evidence.verdict == "warn"
    assert value(evidence, "votes_of_earlier_reviews") == 8
    assert "8 votes do not count, since they were given to pairs that were drawn" in (
        evidence.summary
    )


def swap_key(bench, raw):
    """Put another key in place of the real one, and its hash into the record, as a forger would."""
    ctx = bench.context("prepare_review")
    pairs = REVIEW_PAIRS.find(bench.run)
    REVIEW_PAIRS.write(ctx, pairs)
    (ctx.quarantine / "review_key.json").write_text(raw)
    from tuneline.step import store_output

    store_output(ctx, ctx.record("forged"))


def test_a_swapped_key_is_found_and_no_vote_is_counted(review):
    bench, key = review
    vote(bench, key, for_model("base"))
    assert bench.execute("human_review").verdict == "fail"
    real = key_of(bench).model_dump_json(by_alias=True)
    swap_key(bench, real.translate({ord("A"): "B", ord("B"): "A"}))
    evidence = bench.execute("human_review")
    assert evidence.verdict == "fail"
    assert value(evidence, "pairs_that_contradict_the_key") == 8
    assert "no vote was counted" in evidence.summary
    assert "win_rate" not in values(evidence)


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
    evidence = bench.execute("human_review")
    assert evidence.verdict == "fail"
    assert broken(evidence) == {"released_preferred"}
    found = values(evidence)
    assert (found["wins"], found["released_losses"]) == (10, 10)
    vote(bench, key, for_model("tuned"))
    assert bench.execute("human_review").verdict == "pass"


def test_both_bad_counts_as_a_tie_and_is_reported_apart(review):
    bench, key = review
    choices = {entry.pair: "both bad" for entry in key[:2]}
    vote(bench, key, lambda entry: choices.get(entry.pair) or for_model("tuned")(entry))
    evidence = bench.execute("human_review")
    found = values(evidence)
    assert (found["wins"], found["ties"], found["both_bad"]) == (6, 2, 2)
    assert found["win_rate"] == 7 / 8
    assert "2 tied (2 of them with both answers bad)" in evidence.summary


def test_comments_are_kept(review):
    bench, key = review
    vote(bench, key, for_model("tuned"), comment="too long, all of them")
    bench.execute("human_review")
    kept = bench.document("human_review", "votes.json")
    assert kept["comments"] == {"alice": ["too long, all of them"]}


def test_nobody_answered_is_said(review):
    bench, _ = review
    evidence = bench.execute("human_review")
    assert (evidence.verdict, evidence.summary) == ("warn", "not reviewed: no one answered")


def test_nothing_to_prefer_is_said(lab):
    bench = lab(evaluation={"review": True})
    assert prepared(bench, equal=12) == []
    assert "nothing to prefer" in bench.execute("human_review").summary


def test_switched_off_is_said(lab):
    evidence = lab().execute("human_review")
    assert (evidence.verdict, evidence.summary) == (
        "warn",
        "not reviewed: the review is switched off",
    )


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
    review_id = key_of(bench).review_id
    ballot = Ballot(
        review_id=review_id,
        reviewer="alice",
        source="airflow",
        at="2026-01-01T00:00:00Z",
        marks=[Mark(pair=1, choice="A")],
    )
    document = ballots.document_of(review_id, "edited-by-hand")
    document.put(bench.run, ballot.model_copy(update=wrong))
    with pytest.raises(UserError, match=why):
        bench.execute("human_review")


@pytest.mark.parametrize("document", [[{"pair": 1}], {"marks": [{"pair": 1}]}, "{"])
def test_votes_of_another_form_are_refused(review, document):
    bench, _ = review
    raw = document if isinstance(document, str) else json.dumps(document)
    bench.run.store.put_bytes(bench.run.key(f"{ballots.FOLDER}/x/y.json"), raw.encode())
    with pytest.raises(UserError, match=r"evaluation/review_votes/x/y\.json: "):
        bench.execute("human_review")


def test_the_last_vote_of_a_reviewer_counts(review):
    bench, key = review
    vote(bench, key, for_model("tuned"))
    vote(bench, key, for_model("base"))
    evidence = bench.execute("human_review")
    assert (value(evidence, "votes"), value(evidence, "losses")) == (8, 8)


def test_votes_of_a_judge_of_an_earlier_version_do_not_count(review):
    bench, key = review
    vote(bench, key, for_model("base"), ("gpt",))
    (document,) = ballots.documents(bench.run)
    document.put(bench.run, ballots.ballots(bench.run)[0].model_copy(update={"judge": True}))
    assert bench.execute("human_review").summary == "not reviewed: no vote counts"
    vote(bench, key, for_model("tuned"))
    evidence = bench.execute("human_review")
    assert (evidence.verdict, value(evidence, "reviewers")) == ("pass", 1)


def test_answers_must_be_there_to_draw_from(lab):
    bench = lab(evaluation={"review": True})
    leave_answers(bench)
    bench.run.store.delete_prefix(bench.run.step_key("holdout_performance"))
    with pytest.raises(UserError, match="holdout_performance has not been run"):
        bench.execute("prepare_review")
