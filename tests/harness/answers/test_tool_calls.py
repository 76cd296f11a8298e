import json

import pytest

from tuneline.harness.answers.tool_calls import same_calls, tool_calls

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
