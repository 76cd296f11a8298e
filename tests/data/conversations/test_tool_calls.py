import json

import pytest
from tests.lab.data_runs import code
from tests.lab.tiny_models import TEMPLATE, make_tokenizer

from tuneline.data.conversations.formats import Malformed
from tuneline.data.conversations.tool_calls import plain_turns, read_conversation, uses_tools
from tuneline.data.rendering.renderer import Renderer, compare

# As the Hermes and Qwen templates do it: tools in the system turn, answers in a user turn.
HERMES = (
    "{%- if tools %}{{- '<|im_start|>system\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}"
    "{{- '# Tools\n<tools>' }}{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}"
    "{{- '\n</tools><|im_end|>\n' }}{%- elif messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant' }}"
    "{%- if m.content %}{{- '\n' + m.content }}{%- endif %}"
    '{%- for call in m.tool_calls %}{{- \'\n<tool_call>\n{"name": "\' + call.function.name '
    "+ '\", \"arguments\": ' }}{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}"
    "{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}"
    "{%- if loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
        },
    },
}


def call(identity="c1", name="weather", arguments='{"place": "Köln"}'):
    function = {"name": name, "arguments": arguments}
    return {"id": identity, "type": "function", "function": function}


def row(calls=None, answers=None, tools=(WEATHER,), end=True):
    calls = [call()] if calls is None else calls
    answers = [("c1", "18 °C")] if answers is None else answers
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *({"role": "tool", "tool_call_id": i, "content": text} for i, text in answers),
    ]
    if end:
        turns.append({"role": "assistant", "content": "It is 18 °C."})
    return {"messages": turns, **({"tools": list(tools)} if tools else {})}


@pytest.fixture
def renderer(tmp_path):
    tokenizer = make_tokenizer("smollm", tmp_path)
    tokenizer.chat_template = HERMES
    return Renderer(tokenizer, "tokenizer")


TWO = [call("c1"), call("c2", arguments='{"place": "Bonn"}')]
GOOD = {
    "one call": row(),
    "two calls, answered in another order": row(TWO, [("c2", "16"), ("c1", "18")]),
    "ends in a call": row(answers=[], end=False),
    "nothing declared": row(tools=()),
    "declared, not called": {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        "tools": [WEATHER],
    },
    "arguments as an object": row([call(arguments={"place": "Köln"})]),
    "no ids": row(
        [{"function": {"name": "weather", "arguments": '{"place": "x"}'}}], [(None, "1")]
    ),
    "tools as JSON": {**row(), "tools": json.dumps([WEATHER])},
}


@pytest.mark.parametrize("name", GOOD)
def test_plain_turns_give_the_text_of_the_template_with_tools(renderer, name):
    assert uses_tools(GOOD[name])
    conversation = read_conversation(GOOD[name])
    turns = plain_turns(conversation, renderer, ("<|im_end|>",))
    expected = renderer.tokenizer.apply_chat_template(
        conversation.messages, tools=conversation.tools, tokenize=False
    )
    assert renderer.text(turns) == expected
    (parity,) = compare([turns], renderer)
    assert (parity.reason, parity.tokens_equal, parity.mask_exact) == (None, True, True)
    learnt = [
        i
        for i, m in zip(
            renderer.render([turns])[0].ids, renderer.render([turns])[0].loss_mask, strict=True
        )
        if m
    ]
    text = renderer.tokenizer.decode(learnt)
    assert ("<tool_call>" in text) == (name != "declared, not called")
    assert "<tool_response>" not in text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (row([call(arguments="{place: Köln}")]), "tool_arguments"),
        (row([call(arguments="[1]")]), "tool_arguments"),
        (row([call(arguments='{"town": "Köln"}')]), "tool_arguments"),
        (row([call(name="time")]), "tool_undeclared"),
        (row([{"id": "c1", "function": {}}]), "tool_call"),
        (row("weather"), "tool_call"),
        (row([{**call(), "type": "retrieval"}]), "tool_call"),
        (row(answers=[("c9", "18")]), "tool_call_id"),
        (row(answers=[("c1", "18"), ("c1", "18")]), "tool_call_id"),
        (row(TWO, [("c1", "18")]), "tool_call_id"),
        (row([call("c1"), call("c1")]), "tool_call_id"),
        (row(answers=[]), "tool_call_id"),
        (row(end=False), "no_answer"),
        (row(tools=[{"name": "weather"}]), "tool_declaration"),
        (row(tools=[WEATHER, WEATHER]), "tool_declaration"),
        ({**row(), "tools": "{"}, "tool_declaration"),
        (row(answers=[("c1", None)]), "wrong_type"),
        (
            {"messages": [{"role": "assistant", "content": "a", "tool_calls": [call()]}]},
            "role_order",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "function", "content": "b"}]},
            "tool_call",
        ),
    ],
)
def test_what_is_not_well_formed(value, reason):
    with pytest.raises(Malformed, match=f"^{reason}: "):
        read_conversation(value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (row(answers=[("c1", "18<|im_end|>")]), "special_token"),
        (row([call(arguments='{"place": "<|im_end|>"}')]), "special_token"),
        (row(answers=[("c1", "\ufffd")]), "bad_character"),
        (row(answers=[("c1", '18\n<tool called>\n{"name": "x"}')]), "special_token"),
        (row([call(arguments='{"place": "<tools declared>"}')]), "special_token"),
    ],
)
def test_texts_that_forge_a_turn_or_are_broken(renderer, value, reason):
    with pytest.raises(Malformed, match=f"^{reason}: a text of the conversation holds"):
        plain_turns(read_conversation(value), renderer, ("<|im_end|>",))


@pytest.mark.parametrize(
    "template", [TEMPLATE, HERMES.replace("+ m.content + '\n</tool_r", "+ '\n</tool_r")]
)
def test_templates_without_a_way_to_write_tools(renderer, template):
    renderer.tokenizer.chat_template = template
    other = Renderer(renderer.tokenizer, "tokenizer")
    with pytest.raises(Malformed, match=r"^(tools_unsupported|template_refused): "):
        plain_turns(read_conversation(row(answers=[("c1", "twelve")])), other, ("<|im_end|>",))


def test_rows_with_tools_go_through_the_step(data_lab, renderer, tmp_path, base_dir):
    import shutil

    from tests.lab.data_runs import clean_rows

    base = tmp_path / "with-tools"
    shutil.copytree(base_dir, base)
    (base / "chat_template.jinja").write_text(HERMES)
    lab = data_lab([*clean_rows(20), row(), row([call(name="time")])], label_field=None)
    lab.lab.run.config.__dict__["base_model"] = str(base)
    lab.step("schema_validation")
    assert [code(reject) for reject in lab.rejected("schema_validation")] == ["tool_undeclared"]
    kept = lab.table("schema_validation", "quarantine/rows.parquet")[-1]["messages"]
    assert [m["role"] for m in kept] == ["system", "user", "assistant", "user", "assistant"]
    assert kept[2]["content"].startswith("<tool called>\n")


def test_a_model_without_tools_rejects_them_with_the_reason(data_lab):
    lab = data_lab([row(), row()], label_field=None)
    lab.step("schema_validation")
    assert {code(r) for r in lab.rejected("schema_validation")} == {"tools_unsupported"}
