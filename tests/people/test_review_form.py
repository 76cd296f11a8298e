import pytest
from tests.lab.reviews import prepared
from tests.lab.runs import Lab

from tuneline.artifacts.evaluation import REVIEW_PAIRS
from tuneline.errors import UserError
from tuneline.people import ballots, blind_review


@pytest.fixture
def run(tmp_path):
    bench = Lab(tmp_path, {"evaluation": {"review": True}})
    prepared(bench)
    return bench.run


def filled(run, numbers, choices, comment=None):
    names = list(blind_review.form_fields(run, numbers))[:-1]
    return {**dict(zip(names, choices, strict=True)), "comment": comment}


def test_each_pair_has_a_field_with_four_choices_and_all_have_one_comment(run):
    fields = blind_review.form_fields(run, [1, 2])
    assert [field["title"] for field in fields.values()] == ["Pair 1", "Pair 2", "Comment"]
    first = next(iter(fields.values()))
    assert first["enum"] == [None, "A is better", "B is better", "Tie", "Both are bad"]


def test_what_is_filled_in_is_stored_under_the_name_that_airflow_recorded(run):
    given = filled(run, [2, 4, 5], ["B is better", None, "Both are bad"], "why both?")
    assert blind_review.record_form(run, [2, 4, 5], given, "dora") == 2
    (ballot,) = ballots.ballots(run)
    assert (ballot.reviewer, ballot.source, ballot.comment) == ("dora", "airflow", "why both?")
    assert [(mark.pair, mark.choice) for mark in ballot.marks] == [(2, "B"), (5, "both bad")]


def test_an_empty_form_is_no_vote(run):
    with pytest.raises(UserError, match="no vote was given"):
        blind_review.record_form(run, [1], filled(run, [1], [None]), "dora")


def test_a_choice_that_the_form_does_not_offer_is_refused(run):
    with pytest.raises(UserError, match="'C is better' is not a choice"):
        blind_review.record_form(run, [1], filled(run, [1], ["C is better"]), "dora")


def test_votes_on_pairs_that_were_drawn_again_fit_no_field(run):
    given = filled(run, [1], ["Tie"])
    sheet = REVIEW_PAIRS.find(run).model_copy(update={"review_id": "r2"})
    run.store.put_bytes(REVIEW_PAIRS.key(run), sheet.model_dump_json(by_alias=True).encode())
    with pytest.raises(UserError, match="the form has no field pair_1_r"):
        blind_review.record_form(run, [1], given, "dora")


def test_an_answer_cannot_break_out_of_its_quotes(run):
    evil = "```\n<img src=x>\n# heading\n````"
    sheet = REVIEW_PAIRS.find(run)
    pair = sheet.pairs[0].model_copy(update={"A": evil})
    sheet = sheet.model_copy(update={"pairs": [pair]})
    run.store.put_bytes(REVIEW_PAIRS.key(run), sheet.model_dump_json(by_alias=True).encode())
    assert f"`````\n{evil}\n`````" in blind_review.review_body(run, [pair.pair])


def test_pairs_that_are_gone_are_said(run):
    with pytest.raises(UserError, match="not those that were dealt out"):
        blind_review.review_body(run, [10, 11])
