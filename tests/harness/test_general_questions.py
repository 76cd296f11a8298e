"""The general-purpose questions: well formed, short, and judged by rules that can say no."""

from collections import Counter

import pytest

from tuneline.harness.general_questions import CHECKS, Question, check_answer, load_questions


def ask(**check: object) -> Question:
    return Question("x", "x", "?", check, 8)


def test_the_set_is_large_enough_varied_and_cheap():
    questions = load_questions()
    assert len(questions) >= 140
    assert len({question.prompt for question in questions}) == len(questions)
    assert len({question.id for question in questions}) == len(questions)
    categories = Counter(question.category for question in questions)
    assert set(categories) == {"arithmetic", "facts", "grammar", "instructions"}
    assert min(categories.values()) >= 25
    assert {question.check["kind"] for question in questions} == set(CHECKS)
    assert max(question.max_tokens for question in questions) <= 16
    # An English word has at most about 1.5 tokens: 40 tokens for the longest prompt.
    assert max(len(question.prompt.split()) for question in questions) <= 26


@pytest.mark.parametrize("answer", ["", "I'm sorry, but", '{"intent":"track","reply":"Hi."}'])
def test_no_question_takes_an_empty_or_off_topic_answer(answer):
    accepted = [question.id for question in load_questions() if check_answer(question, answer)]
    assert accepted == []


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (
            {"kind": "exact", "answers": ["Paris"]},
            ["Paris", " paris.\n", '"Paris"'],
            ["It is Paris", "Par is", ""],
        ),
        (
            {"kind": "contains_any", "words": ["O", "don't"]},
            ["It is O.", "o", "We don’t."],
            ["Oxygen", "dont", "O2"],
        ),
        (
            {"kind": "number", "value": 1000},
            ["500 + 500 = 1,000.", "1000", "1000.0"],
            ["10000", "1000 or 2000", "one thousand", "a1000"],
        ),
        (
            {"kind": "number", "value": 5, "which": "first"},
            ["5, that is 2 + 3"],
            ["2 + 3 is 5"],
        ),
        ({"kind": "number", "value": -4}, ["6 - 10 = -4"], ["4"]),
        ({"kind": "regex", "pattern": r"^STOP\b"}, ["STOP!", " STOP"], ["stop", "Do STOP"]),
        (
            {"kind": "format", "rule": "words", "count": 2},
            ["Good morning!", "well-known fact"],
            ["Good", "a b c", ""],
        ),
        (
            {"kind": "format", "rule": "list", "items": 3},
            ["red, green, blue", "Red, dark green and blue."],
            [
                "red, green",
                "red, red, blue",
                "The colours that I like are red, green, blue",
                "1. a",
            ],
        ),
        (
            {"kind": "format", "rule": "ends_with", "text": "?"},
            ["How are you?\n"],
            ["How are you? Fine."],
        ),
    ],
)
def test_each_check_takes_right_answers_and_refuses_wrong_ones(check, right, wrong):
    assert [check_answer(ask(**check), answer) for answer in right] == [True] * len(right)
    assert [check_answer(ask(**check), answer) for answer in wrong] == [False] * len(wrong)
