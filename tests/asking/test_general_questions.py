"""The general questions: well formed, short, and judged by rules that can say no."""

from collections import Counter

import pytest

from tuneline.asking.general_questions import (
    CHECKS,
    FORMATS,
    Question,
    check_answer,
    load_questions,
    load_suite,
    paragraphs,
)


def test_the_short_set_is_large_enough_varied_and_cheap():
    questions = load_questions()
    assert len(questions) >= 140
    assert len({q.prompt for q in questions}) == len({q.id for q in questions}) == len(questions)
    categories = Counter(question.category for question in questions)
    assert set(categories) == {"arithmetic", "facts", "grammar", "instructions"}
    assert min(categories.values()) >= 25
    assert max(question.max_tokens for question in questions) <= 16
    # An English word has at most about 1.5 tokens: 40 tokens for the longest prompt.
    assert max(len(question.prompt.split()) for question in questions) <= 26


def test_the_suite_has_enough_questions_of_each_kind():
    suite = load_suite()
    assert len(suite) >= 2000
    assert len({question.id for question in suite}) == len(suite)
    assert len({(q.prompt, str(q.check)) for q in suite}) == len(suite)
    categories = Counter(question.category for question in suite)
    assert " ".join(sorted(categories)) == (
        "arithmetic facts formats grammar instructions reading reasoning refusal"
    )
    assert min(categories.values()) >= 60
    assert {q.check["kind"] for q in suite} == set(CHECKS)
    assert {q.check["rule"] for q in suite if q.check["kind"] == "format"} == set(FORMATS)
    assert {q.id for q in load_questions()} <= {q.id for q in suite}
    refusal = [q for q in suite if q.category == "refusal"]
    # Declining everything is right on half, and so is declining nothing.
    assert sum("can't" in q.choices[0] for q in refusal) == len(refusal) / 2
    texts = paragraphs()
    assert len(set(texts)) == len(texts) >= 30
    assert all(50 <= len(text.split()) <= 120 for text in texts)


def test_every_beginning_of_the_suite_is_a_fair_sample():
    suite = load_suite()
    whole = Counter((q.category, bool(q.choices)) for q in suite)
    for size in (400, 1000):
        part = Counter((q.category, bool(q.choices)) for q in suite[:size])
        for stratum, count in whole.items():
            assert abs(part[stratum] - count * size / len(suite)) <= 1.5


def test_choices_differ_and_their_order_tells_nothing_where_they_are_listed():
    choices = [question for question in load_suite() if question.choices]
    for question in choices:
        assert len(set(question.choices)) == len(question.choices) >= 2
        assert all(choice and choice == choice.strip() for choice in question.choices)
        assert all(choice in question.listed for choice in question.choices)
    first = [q.listed.rsplit("one of these: ", 1)[1].startswith(q.choices[0]) for q in choices]
    guessed = sum(1 / len(q.choices) for q in choices) / len(choices)
    assert sum(first) / len(first) == pytest.approx(guessed, abs=0.05)


@pytest.mark.parametrize("answer", ["", '{"intent":"track","reply":"Hi."}'])
def test_no_question_takes_an_empty_or_off_topic_answer(answer):
    accepted = [q for q in load_suite() if check_answer(q, answer)]
    # A constraint on the form may hold by chance of an answer that ignores the topic.
    assert {q.category for q in accepted} <= ({"instructions"} if answer else set())
    assert len(accepted) <= 0.02 * len(load_suite())
    assert not [q for q in load_questions() if check_answer(q, answer)]


@pytest.mark.parametrize(
    ("kind", "check", "right", "wrong"),
    [
        (
            "exact",
            {"answers": ["Paris"]},
            ["Paris", " paris.\n", '"Paris"'],
            ["It is Paris", "Par is", ""],
        ),
        (
            "contains_any",
            {"words": ["O", "don't"]},
            ["It is O.", "o", "We don’t."],
            ["Oxygen", "dont", "O2"],
        ),
        (
            "choice",
            {"choices": ["at the market", "at the park", "park"]},
            ["Anna was at the market.", "At the market, not at the park"],
            ["At the park", "park or at the market", "market", ""],
        ),
        (
            "number",
            {"value": 1000},
            ["500 + 500 = 1,000.", "1000", "1000.0"],
            ["10000", "1000 or 2000", "one thousand", "a1000"],
        ),
        ("number", {"value": 5, "which": "first"}, ["5, that is 2 + 3"], ["2 + 3 is 5"]),
        ("number", {"value": -4}, ["6 - 10 = -4"], ["4"]),
        ("regex", {"pattern": r"^STOP\b"}, ["STOP!", " STOP"], ["stop", "Do STOP"]),
        ("words", {"count": 2}, ["Good morning!", "well-known fact"], ["Good", "a b c", ""]),
        ("words", {"most": 3}, ["one", "a b c"], ["a b c d", ""]),
        (
            "list",
            {"items": 3},
            ["red, green, blue", "Red, dark green and blue."],
            [
                "red, green",
                "red, red, blue",
                "The colours I like most are red, green, blue",
                "1. a",
            ],
        ),
        ("ends_with", {"text": "?"}, ["How are you?\n"], ["How are you? Fine."]),
        ("starts_with", {"text": "Once"}, [" Once it rained."], ["It rained once.", ""]),
        ("lower", {}, ["the sea is wide."], ["The sea", "12", ""]),
        ("upper", {}, ["THE SEA!"], ["THE SEa", "12", ""]),
        (
            "without",
            {"text": "cat"},
            ["It sleeps all day."],
            ["My Cat sleeps all day.", "Purr.", ""],
        ),
        (
            "json",
            {"value": {"day": "Monday", "count": 2}},
            ['{"count": 2, "day": "Monday"}', ' {"day":"Monday","count":2}\n'],
            ['{"day": "Monday"}', 'Sure: {"day": "Monday", "count": 2}', "{", ""],
        ),
    ],
)
def test_each_check_takes_right_answers_and_refuses_wrong_ones(kind, check, right, wrong):
    named = {"kind": "format", "rule": kind} if kind in FORMATS else {"kind": kind}
    question = Question("x", "x", "?", {**named, **check}, 8)
    assert [check_answer(question, answer) for answer in right] == [True] * len(right)
    assert [check_answer(question, answer) for answer in wrong] == [False] * len(wrong)
