"""Tool calls, numbers and likeness of texts, as answers write them."""

import json

import pytest

from tuneline.asking.answer_values import (
    chrf,
    final_number,
    rouge_l,
    same_calls,
    same_number,
    states_number,
    tool_calls,
)

CALL = '{"name": "find_parcel", "arguments": {"order": "A-12345", "days": 2, "open": true}}'


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>\n{CALL}\n</tool_call>",
        f"[TOOL_CALLS] [{CALL}]",
        CALL.replace("arguments", "parameters"),
        f"I look it up.\n```json\n{CALL}\n```",
        '{"arguments": {"open": true, "days": 2.0, "order": "A-12345"}, "name": "find_parcel"}',
        json.dumps(
            {
                "tool_calls": [
                    {
                        "type": "function",
                        "function": {
                            "name": "find_parcel",
                            "arguments": '{"order": "A-12345", "days": 2, "open": true}',
                        },
                    }
                ]
            }
        ),
    ],
)
def test_a_call_is_the_same_in_every_form(text):
    assert same_calls(text, CALL)


@pytest.mark.parametrize(
    "text",
    [
        CALL.replace("A-12345", "A-12346"),
        CALL.replace("find_parcel", "find_order"),
        CALL.replace(', "open": true', ""),
        CALL.replace("2,", '"2",'),
        CALL.replace("true", 'true, "more": 1'),
        f"{CALL}\n{CALL}",
        CALL[:-2],
        "I call find_parcel for A-12345.",
        "",
    ],
)
def test_another_name_argument_or_number_of_calls_is_wrong(text):
    assert not same_calls(text, CALL)


def test_parallel_calls_have_no_order():
    other = '{"name": "refund", "arguments": {}}'
    assert same_calls(f"{other}\n{CALL}", f"{CALL}{other}")
    assert not same_calls(other, f"{CALL}{other}")


def test_where_no_call_is_expected_any_call_is_wrong():
    assert same_calls("Which order do you mean?", "What is the number of your order?")
    assert not same_calls(CALL, "What is the number of your order?")
    assert tool_calls('{"name": "only a name"} [1, 2] {"intent": "x"}') == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 16 - 7 = <<16-7=9>>9 eggs.\n#### 18", 18),
        ("The answer is $1,234.50.", 1234.5),
        ("#### 5 apples, of 7", 5),
        ("72%", 72),
        ("from 3 to -4", -4),
        ("10-4", 4),
        ("\u22122.5", -2.5),
        ("1.5e3", 1500),
        ("model v2", None),
        ("none", None),
        ("####", None),
    ],
)
def test_the_final_number_is_found(text, number):
    assert final_number(text) == number


def test_a_number_is_the_same_within_the_tolerance():
    assert same_number("about 100.5", "#### 100", 0.01)
    assert not same_number("about 101.5", "#### 100", 0.01)
    assert not same_number("98.5", "100", 0.01)
    assert same_number("#### 1,000", "1000", 0.0)
    assert not same_number("0.001", "0", 0.01)
    assert not same_number("none", "3", 1.0)


def test_an_answer_states_a_number_alone_or_behind_the_mark():
    assert all(map(states_number, ["42", " $3.50 ", "-7%", "Reasons.\n#### 12"]))
    assert not any(map(states_number, ["42 apples", "call 555 for 3", "", "#### none"]))


# Computed with the package rouge-score 0.1.2, without its stemmer.
@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("police killed the gunman", "police kill the gunman", 0.75),
        ("the gunman police killed", "police killed the gunman", 0.5),
        (
            "Fog lifts after ten. Wear sturdy boots.",
            "Wear sturdy boots; fog lifts after nine.",
            3 / 7,
        ),
        ("a b c d e f", "a x b y c z", 0.5),
    ],
)
def test_rouge_l_is_that_of_the_package(answer, expected, score):
    assert rouge_l(answer, expected) == pytest.approx(score)


def test_rouge_l_reads_other_scripts():
    assert rouge_l("Привет, мир", "привет мир!") == 1.0
    # Five of seven and five characters.
    assert rouge_l("东京是首都", "东京是日本首都") == pytest.approx(10 / 12)
    assert rouge_l("", "text") == rouge_l("text", "?") == 0.0


def test_chrf_ranks_likeness():
    expected = "Fog lifts after ten."
    assert chrf(expected, expected) == 1.0
    assert 0.5 < chrf("Fog lifts after nine.", expected) < 1.0
    assert chrf("", expected) == 0.0
    assert chrf("0123", expected) == 0.0


def test_chrf_by_hand():
    # "ab" against "ac": one of two single characters is right, no pair of characters is. Precision
    # and recall are (1/2 + 0) / 2, and so is the F-score.
    assert chrf("ab", "ac") == pytest.approx(0.25)
