import json

import pytest

from tuneline.models.tool_turns import (
    ends_in_call,
    is_result,
    plain_answer,
    request_fields,
    to_plain,
    with_tools,
)

TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]


def call(number, **arguments):
    function = {"name": "find", "arguments": arguments}
    return {"id": f"call{number:05}", "type": "function", "function": function}


def answered(number, text):
    return {"role": "tool", "content": text, "name": "find", "tool_call_id": f"call{number:05}"}


ASKED = {"role": "user", "content": "Where is «A»?\n"}
SAID = {"role": "assistant", "content": "Here.\n"}
CALLS = {
    "role": "assistant",
    "content": "I look.\n",
    "tool_calls": [call(1, a="x\n"), call(2, b=2)],
}
RESULTS = [answered(2, '{"at": "</tool>"}\n'), answered(1, "")]
CONVERSATIONS = {
    "several calls, answered in another order": [ASKED, CALLS, *RESULTS, SAID],
    "a system turn": [{"role": "system", "content": "Be brief.\n\n"}, ASKED, CALLS, *RESULTS, SAID],
    "calls again": [
        ASKED,
        {**CALLS, "content": ""},
        *RESULTS,
        {"role": "assistant", "content": "", "tool_calls": [call(3)]},
        answered(3, "a\nb"),
        SAID,
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [call(4)]},
    ],
    "no calls": [ASKED, SAID],
}


@pytest.mark.parametrize("tools", [TOOLS, None])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_come_back_as_they_were(name, tools):
    messages = CONVERSATIONS[name]
    plain = to_plain(messages, tools)
    assert with_tools(plain) == (messages, tools)
    assert [turn["role"] for turn in plain[1:]] == ["user", "assistant"] * (len(plain) // 2)
    assert ends_in_call(plain) == ("tool_calls" in messages[-1])
    assert any(map(is_result, plain)) == (name != "no calls")
    fields = request_fields(plain)
    assert fields.get("tools") == tools
    arguments = [
        call["function"]["arguments"]
        for turn in fields["messages"]
        for call in turn.get("tool_calls", ())
    ]
    assert all(isinstance(json.loads(text), dict) for text in arguments)


def test_turns_without_tools_stay_as_they_are():
    turns = [ASKED, {"role": "assistant", "content": '<tool called>\n{"name": "x"}'}]
    assert with_tools(turns) == (turns, None)
    assert request_fields(turns) == {"messages": turns}
    assert not ends_in_call(turns)


@pytest.mark.parametrize("said", ["Be brief.", ""])
def test_what_is_added_to_the_system_turn_goes_to_the_model(said):
    system = [{"role": "system", "content": said}] if said else []
    plain = to_plain([*system, ASKED, SAID], TOOLS)
    plain[0]["content"] += "\n\nAnswer in German."
    turns, tools = with_tools(plain)
    assert tools == TOOLS
    assert turns[0]["content"] == "\n\n".join(filter(None, [said, "Answer in German."]))


def test_a_served_answer_has_the_form_of_the_rows():
    wanted = to_plain(CONVERSATIONS["calls again"], TOOLS)[-1]["content"]
    function = {"name": "find", "arguments": "{}"}
    assert plain_answer("", [{"id": "Xy1", "type": "function", "function": function}]) == wanted
    broken = plain_answer("", [{"function": {"name": "find", "arguments": "{a"}}])
    assert '"{a"' in broken


def test_calls_that_are_no_longer_json_are_an_error():
    plain = to_plain(CONVERSATIONS["calls again"], TOOLS)
    plain[2]["content"] = plain[2]["content"].replace("{", "", 1)
    with pytest.raises(ValueError, match=r"Expecting|Extra data"):
        with_tools(plain)
