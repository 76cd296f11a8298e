"""Every family's rows through the renderer, judged by the published template alone."""

import pytest
from benchmarks.faults.guests.families import FAMILIES, make_tokenizer
from benchmarks.faults.guests.shapes import guest
from tests.lab.data_runs import chat
from tests.lab.engines import llama_server

from tuneline.data.conversations.formats import Malformed
from tuneline.data.conversations.tool_calls import plain_turns, read_conversation
from tuneline.data.rendering.renderer import Renderer, chat_template, compare

ROWS = {
    "one exchange": chat("Where is  it?\n", "In Rome, \n\nItaly 🎉"),
    "a system turn": chat("Where?", '{"place": "Rome"}', "Be brief."),
    "two exchanges": [*chat("Where?", "In Rome."), *chat("And now?", "<b>Oslo</b>")],
    "all of it": [*chat("Where?", "In Rome.", "Be brief."), *chat("Now?", "Oslo"), *chat("x", "y")],
}
# What a model writes before and behind the text of its answer, besides the end token.
BEFORE = {
    "deepseek_r1_distill": "\n</think>\n\n",
    "deepseekv3": "\n</think>\n\n",
    "glm4moe": "\n",
    "gptoss": "<|channel|>final<|message|>",
    "muse_glimmer": " to=user<|message|>",
}
BEHIND = {"cohere2": "<|END_RESPONSE|>"}
SPLIT = {"deepseek_r1_distill", "deepseekv3", "gptoss"} | {
    f"qwen3{version}" for version in ("", "_5_think", "_5_nothink", "_6")
}


@pytest.fixture(scope="module")
def renderers():
    return {
        name: Renderer(make_tokenizer(family), "tokenizer") for name, family in FAMILIES.items()
    }


def served(name, messages, *, ask=True):
    """The ids that the published template gives of a conversation, thoughts off."""
    if not FAMILIES[name].system and messages[0]["role"] == "system":
        first = {**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
        messages = [first, *messages[2:]]
    return make_tokenizer(FAMILIES[name]).apply_chat_template(
        messages, add_generation_prompt=ask, enable_thinking=False, return_dict=False
    )


def runs(mask):
    """First and last place of each run of learned tokens."""
    edges = [
        n for n, (a, b) in enumerate(zip([False, *mask], [*mask, False], strict=True)) if a != b
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_trained_is_what_is_served(name, renderers):
    family, renderer = FAMILIES[name], renderers[name]
    assert [p[:3] for p in compare([*ROWS.values()], renderer)] == [(None, True, True)] * len(ROWS)
    for messages in ROWS.values():
        answers = [n for n, turn in enumerate(messages) if turn["role"] == "assistant"]
        rows = renderer.learned_as(messages)
        assert len(rows) == (len(answers) if name in SPLIT else 1)
        learned = []
        for row, example in zip(rows, renderer.render(rows), strict=True):
            here = [len(row) - 1] if name in SPLIT else answers
            for (start, end), place in zip(runs(example.loss_mask), here, strict=True):
                assert example.ids[:start] == served(name, row[:place])
                said = row[place]["content"]
                text = renderer.tokenizer.decode(example.ids[start:end])
                # Most templates strip what is said.
                wanted = [
                    f"{BEFORE.get(name, '')}{said}{BEHIND.get(name, '')}{family.end}"
                    for said in (said, said.strip())
                ]
                assert text in wanted
                learned.append(place)
        assert learned == answers


@pytest.mark.parametrize("name", FAMILIES)
def test_the_adapted_template_is_the_published_one_without_thoughts(name, renderers):
    tokenizer, renderer = make_tokenizer(FAMILIES[name]), renderers[name]
    for messages in ROWS.values():
        if FAMILIES[name].system or messages[0]["role"] != "system":
            assert renderer.encode([renderer.written(messages)]) == [
                served(name, messages, ask=False)
            ]
    tokenizer.chat_template = renderer.template
    assert chat_template(tokenizer, "tokenizer") == renderer.template


def test_the_masks_are_those_of_trl_where_it_renders_the_same(renderers):
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    compared = set()
    for name, renderer in renderers.items():
        tokenizer, messages = make_tokenizer(FAMILIES[name]), ROWS["two exchanges"]
        try:
            template = get_training_chat_template(tokenizer) or tokenizer.chat_template
        except ValueError:  # a template that TRL has no variant for
            continue
        assert has_generation_markers(template)
        found = tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            return_dict=True,
            return_assistant_tokens_mask=True,
            enable_thinking=False,
        )
        (example,) = renderer.render([messages])
        if found["input_ids"] != example.ids:
            continue
        compared.add(name)
        for start, end in runs(example.loss_mask):
            # TRL marks some headers too, and what a template writes behind the end token.
            (there,) = [(a, b) for a, b in runs(found["assistant_masks"]) if a <= start < b]
            assert end <= there[1]
            rest = tokenizer.decode(example.ids[end : there[1]])
            assert rest.strip() in ("", "<|endoftext|>")
    assert len(compared) >= 20


# Templates that nobody wrote for TRL.
HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
ASK = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
OPENED = ASK.replace("assistant\n", "assistant\n[THINK]")
UNKNOWN = {
    "sound": (HEAD + "{{ m.content }}<|im_end|>\n" + ASK, None, 1),
    "history without an end": (
        HEAD + "{{ m.content }}{% if loop.last or m.role == 'user' %}<|im_end|>{% endif %}" + ASK,
        None,
        2,
    ),
    "history without the answers": (
        HEAD + "{% if m.role != 'assistant' or loop.last %}{{ m.content }}{% else %}...{% endif %}"
        "<|im_end|>\n" + ASK,
        None,
        2,
    ),
    "the system turn in the last question": (
        # As Mistral's: nothing of it is in a row that ends in an answer.
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
        "{% if loop.last and m.role == 'user' and messages[0].role == 'system' %}"
        "{{ messages[0].content }}\n\n{% endif %}{{ m.content }}<|im_end|>\n" + ASK,
        None,
        2,
    ),
    "a thought without a switch": (
        HEAD + "{{ m.content.split('[/THINK]')[-1] }}<|im_end|>\n" + OPENED,
        None,
        2,
    ),
    "a switch of another name": (
        HEAD
        + "{{ m.content }}<|im_end|>\n"
        + OPENED.replace("[THINK]", "{{ '' if thinking is defined and not thinking else '<t>' }}"),
        None,
        1,
    ),
    "an opened thought that nothing closes": (
        HEAD + "{{ m.content }}<|im_end|>\n" + OPENED,
        "mask_boundary: the chat template does not begin the row",
        1,
    ),
    "no end token": (
        "{% for m in messages %}\n## {{ m.role }}\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}\n## assistant\n{% endif %}",
        "no_end_token: the model's chat template writes no token",
        1,
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_templates_that_nobody_knows(case):
    template, fault, rows = UNKNOWN[case]
    tokenizer = make_tokenizer(FAMILIES["qwen2_5"])
    tokenizer.chat_template = template
    renderer = Renderer(tokenizer, "tokenizer")
    talk = [{"role": "system", "content": "Be brief."}, *ROWS["two exchanges"]]
    (found,) = compare([talk], renderer)
    if fault:
        assert found.reason.startswith(fault)
        assert not found.mask_exact
        return
    assert found[:3] == (None, True, True)
    parts = renderer.learned_as(talk)
    assert len(parts) == rows
    for part, example in zip(parts, renderer.render(parts), strict=True):
        last = runs(example.loss_mask)[-1]
        asked = renderer.encode([renderer.text(part[:-1], ask=True)])[0]
        assert example.ids[: last[0]] == asked
        assert "Be brief." in tokenizer.decode(asked)
        text = tokenizer.decode(example.ids[slice(*last)])
        assert text == f"{renderer.form.closed}{part[-1]['content']}<|im_end|>"


WITH_TOOLS = [name for name, family in FAMILIES.items() if family.tools]
# What ends a call, where it is not what ends an answer.
CALL_END = {f"gemma4{version}": "<|tool_response>" for version in ("", "_v3", "_v4", "_v5")}
CALL_END |= {"glm4moe": "<|observation|>", "gptoss": "<|call|>"}


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_conversations_with_tools_are_trained_as_they_are_served(name, renderers):
    family, renderer = FAMILIES[name], renderers[name]
    tokenizer = make_tokenizer(family)
    for row in guest("tools", seed=3, count=60).rows[:6]:
        conversation = read_conversation(row)
        plain = plain_turns(conversation, renderer, ("<|im_end|>",))
        assert [p[:3] for p in compare([plain], renderer)] == [(None, True, True)]
        parts = renderer.learned_as(plain)
        spans = [
            (example.ids, *run)
            for example in renderer.render(parts)
            for run in runs(example.loss_mask)
        ]
        places = [n for n, turn in enumerate(conversation.messages) if turn["role"] == "assistant"]
        for (ids, start, end), place in zip(spans, places, strict=True):
            asked = tokenizer.apply_chat_template(
                conversation.messages[:place],
                tools=conversation.tools,
                add_generation_prompt=True,
                enable_thinking=False,
                return_dict=False,
            )
            assert ids[:start] == asked
            text, turn = tokenizer.decode(ids[start:end]), conversation.messages[place]
            calls = turn.get("tool_calls", ())
            assert text.endswith(CALL_END.get(name, family.end) if calls else family.end)
            said = [call["function"]["name"] for call in calls] or [turn["content"]]
            assert all(part in text for part in said)
            for value in (v for call in calls for v in call["function"]["arguments"].values()):
                assert str(value) in text


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in WITH_TOOLS])
def test_a_template_that_writes_no_calls_is_named(name, renderers):
    conversation = read_conversation(guest("tools", seed=3, count=60).rows[0])
    with pytest.raises(Malformed, match="tools_unsupported: the model's chat template writes no"):
        plain_turns(conversation, renderers[name], ("<|im_end|>",))


# gpt-oss and Muse are left out: llama.cpp reads their answers by a grammar that random weights
# don't follow, so that its server of such a model never gets ready.
SERVED = [name for name in FAMILIES if name not in ("gptoss", "muse_glimmer")]
FEW = ("qwen3_6", "deepseekv3", "gemma", "llama3_1")


# llama.cpp writes the tools of Gemma 4's first template as its later ones do.
SERVED_TOOLS = {*WITH_TOOLS} - {"gemma4_v2"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FEW else pytest.mark.long) for n in SERVED]
)
def test_the_server_renders_what_was_trained(name, renderers, tmp_path):
    import dataclasses

    from benchmarks.faults.guests.families import write_base

    from tuneline.gguf.export import export_gguf

    # Any architecture that llama.cpp has; the template and the tokens are the family's.
    family = dataclasses.replace(FAMILIES[name], architecture="Qwen2", tied=True)
    base, renderer = write_base(family, tmp_path / "base"), renderers[name]
    export_gguf(base, tmp_path / "base.gguf")
    with llama_server(tmp_path / "base.gguf") as server:
        for messages in ROWS.values():
            text = renderer.text(messages[:-1], ask=True)
            (ids,) = renderer.encode([text])
            assert server.renders(messages[:-1], text, ids)
        for row in guest("tools", seed=5, count=60).rows[:3] if name in SERVED_TOOLS else ():
            turns = plain_turns(read_conversation(row), renderer, ("<|im_end|>",))
            for place in (n for n, turn in enumerate(turns) if turn["role"] == "assistant"):
                text = renderer.text(turns[:place], ask=True)
                assert server.renders(turns[:place], text, *renderer.encode([text])), text
