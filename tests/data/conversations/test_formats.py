import pytest
from tests.lab.data_runs import in_form

from tuneline.data.conversations.formats import FORMS, Malformed, detect, form_of, to_messages

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho"},
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_known_and_becomes_turns(form):
    value = in_form(TURNS, form)
    assert form_of(value) == form
    assert to_messages(value, form) == TURNS


def test_alpaca_input_joins_the_instruction():
    row = {"instruction": "Add up.", "input": "1 2", "output": "3"}
    assert to_messages(row, "alpaca")[0]["content"] == "Add up.\n\n1 2"


def test_plain_prompt_and_text_parts():
    row = {"prompt": "hi", "completion": "ho"}
    assert to_messages(row, "prompt_completion") == TURNS[1:]
    row = {"prompt": TURNS[:2], "completion": TURNS[2:]}
    assert to_messages(row, "prompt_completion") == TURNS
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    row = {"messages": [{"role": "user", "content": parts}, TURNS[2]]}
    assert to_messages(row, "messages") == TURNS[1:]


def test_the_commonest_form_is_the_files():
    assert detect(["alpaca", "messages", "messages", None]) == ("messages", 0.5)
    assert detect([None, None]) == (None, 0.0)


@pytest.mark.parametrize(
    ("form", "row", "code"),
    [
        ("messages", {"question": "a"}, "unknown_format"),
        ("messages", in_form(TURNS, "alpaca"), "unknown_format"),
        ("messages", [1], "unknown_format"),
        ("messages", {"messages": "hi"}, "wrong_type"),
        ("messages", {"messages": ["hi"]}, "wrong_type"),
        ("messages", {"messages": [{"role": 3, "content": "a"}]}, "unknown_role"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, "wrong_type"),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "tool_call",
        ),
        ("sharegpt", {"conversations": [{"from": "robot", "value": "x"}]}, "unknown_role"),
        ("sharegpt", {"conversations": [{"from": ["human"], "value": "x"}]}, "unknown_role"),
        ("alpaca", {"instruction": 1, "output": "x"}, "wrong_type"),
        ("chatml_text", {"text": "<|im_start|>user\nhi"}, "broken_template"),
        ("chatml_text", {"text": "so <|im_start|>user\nhi<|im_end|>"}, "broken_template"),
    ],
)
def test_what_does_not_have_the_form(form, row, code):
    with pytest.raises(Malformed, match=f"^{code}: "):
        to_messages(row, form)
