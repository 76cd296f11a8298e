"""A judge behind an endpoint: one that prefers a place to an answer is seen."""

import json

import pytest
from tests.lab.http_server import Handler, serving
from tests.lab.reviews import for_model, prepared, vote
from tests.lab.runs import Lab, values

from tuneline.cli import main
from tuneline.evaluation.review.llm_judge import choice_in, mark_of
from tuneline.human_answers.ballots import ballots


@pytest.fixture
def bench(tmp_path):
    return Lab(tmp_path, {"evaluation": {"review": True, "review_pairs": 8}})


def judge(reply):
    """An endpoint that answers with what `reply` makes of a request's two answers."""

    class Judge(Handler):
        def do_POST(self):
            text = json.loads(self.body())["messages"][-1]["content"]
            _, _, shown = text.rpartition("Answer A:\n")
            a, _, b = shown.partition("\n\nAnswer B:\n")
            message = {"role": "assistant", "content": reply(a, b)}
            answer = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}}
            self.answer(json.dumps(answer).encode())

    return Judge


def prefers_json(a, b):
    side = "A" if a.lstrip().startswith("{") else "B"
    return f'It is JSON, so: {{"reason": "form", "choice": "{side}"}}'


def ask(bench, reply):
    with serving(judge(reply)) as url:
        return main(["review", "judge", f"{url}/v1#clever", "--run", bench.run.uri])


def test_a_steady_judge_votes_for_the_answer_and_not_for_its_place(bench, capsys):
    key = prepared(bench)
    vote(bench, key, for_model("tuned"))
    assert ask(bench, prefers_json) == 0
    assert "8 votes on 8 pairs stored; 8 stayed with their answer" in capsys.readouterr().out
    found = values(bench.run.find_evidence("human_review"))
    assert (found["votes"], found["judge_votes"], found["judge"]) == (8, 8, "clever")
    assert found["judge_agrees_with_people"] == 1.0
    assert found["judge_keeps_its_choice_when_swapped"] == 1.0


def test_a_judge_that_prefers_a_place_is_found_and_its_votes_are_ties(bench):
    prepared(bench)
    assert ask(bench, lambda a, b: '{"choice": "A"}') == 0
    (ballot,) = ballots(bench.run)
    assert ballot.judge
    assert {mark.choice for mark in ballot.marks} == {"tie"}
    assert ballot.marks[0].comment == "A, and B with the sides swapped"
    evidence = bench.run.find_evidence("human_review")
    # Nobody was asked but the judge, whose votes decide nothing.
    assert (evidence.verdict, values(evidence)["votes"]) == ("warn", 0)


def test_a_judge_that_chooses_nothing_leaves_no_vote(bench, capsys):
    prepared(bench)
    assert ask(bench, lambda a, b: "Both are fine answers to me.") == 1
    assert "clever gave no choice for any of 8 pairs" in capsys.readouterr().err
    assert ballots(bench.run) == []


def test_an_endpoint_that_is_down_leaves_no_vote(bench):
    prepared(bench)
    with serving(judge(prefers_json)) as url:
        pass
    assert main(["review", "judge", f"{url}#clever", "--run", bench.run.uri]) == 75
    assert ballots(bench.run) == []


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ('{"choice": "both bad"}', "both bad"),
        ('```json\n{"reason": "x", "choice": "Tie"}\n```', "tie"),
        ("After long thought. Choice: **B**", "B"),
        ("Answer A is longer than answer B.\nVerdict: A", "A"),
        ('{"choice": 3}', None),
        ("I can't say", None),
    ],
)
def test_choices_are_read_as_models_write_them(text, choice):
    assert choice_in(text) == choice


@pytest.mark.parametrize(
    ("first", "second", "vote", "steady"),
    [
        ("A", "B", "A", True),
        ("B", "A", "B", True),
        ("A", "A", "tie", False),
        ("tie", "tie", "tie", True),
        ("both bad", "both bad", "both bad", True),
        ("tie", "A", "tie", False),
    ],
)
def test_both_orders_make_one_vote(first, second, vote, steady):
    mark = mark_of(1, first, second)
    assert (mark.choice, mark.steady) == (vote, steady)
