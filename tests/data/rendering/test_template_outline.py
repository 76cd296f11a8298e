import pytest
from tests.lab.data_runs import chat
from tests.lab.tiny_models import TEMPLATE, make_tokenizer

from tuneline.data.rendering import renderer as rendering
from tuneline.data.rendering.renderer import Renderer, TemplateRefused

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe nice.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OPAQUE = {
    "plain": TEMPLATE,
    "default system": SMOLLM,
    "chatml": rendering.CHATML_TEMPLATE,
    "alpaca": rendering.ALPACA_TEMPLATE,
    "twice": "{% for m in messages %}{{ m.content }}-{{ m.content ~ m.role }}{% endfor %}",
    "alternates": "{% for m in messages %}{{ loop.index0 % 2 }}{{ m.content }}{% endfor %}",
    "never": "{% for m in messages %}{{ m.role }}{% endfor %}",
    "any key": "{% for m in messages %}{{ m[add_generation_prompt] }}{% endfor %}",
    "stand-in": "{% for m in messages %}{{ '\ue0f0' + m.content }}{% endfor %}",
}
LOOKING = {
    "trims": rendering.LLAMA3_TEMPLATE,
    "tests": "{% for m in messages %}{% if 'x' in m['content'] %}!{% endif %}{% endfor %}",
    "chooses": "{% for m in messages %}{{ m.content if m.content else '-' }}{% endfor %}",
    "calls": "{% for m in messages %}{{ m.content.strip() }}{% endfor %}",
    "splits": "{% for m in messages %}{{ m.content[1:] }}{% endfor %}",
    "assigns": "{% for m in messages %}{% set c = m.content %}{{ c }}{% endfor %}",
    "dumps the turn": "{% for m in messages %}{{ m | tojson }}{% endfor %}",
    "dumps all": "{{ messages | tojson }}",
    "compares turns": "{% for m in messages %}{{ m == messages[0] }}{% endfor %}",
    "multiplies": "{% for m in messages %}{{ m.content * 2 }}{% endfor %}",
    "filters loops": "{% for m in messages if m.content %}{{ m.role }}{% endfor %}",
    "goes through pairs": "{% for k, v in messages[0].items() %}{{ v }}{% endfor %}",
    "macro": "{% macro f(m) %}{{ m.content }}{% endmacro %}{{ f(messages[0]) }}",
    "joins and compares": "{% for m in messages %}{{ m.content ~ '' == 'x' }}{% endfor %}",
    "joins and trims": "{% for m in messages %}{{ ('-' + m.content) | trim }}{% endfor %}",
    "adds and compares": "{% for m in messages %}{{ '-' + m.content == '-x' }}{% endfor %}",
    "formats a turn": "{% for m in messages %}{{ '%(content)s' % m == 'x' }}{% endfor %}",
    "formats": "{% for m in messages %}{{ 'x%s' % m.content == 'xx' }}{% endfor %}",
    "is among": "{% for m in messages %}{{ m.content in ['x', 'user'] }}{% endfor %}",
    "in lower case": "{% for m in messages %}{{ m.content is lower }}{% endfor %}",
    "counts": "{% for m in messages %}{{ m.content | length }}{% endfor %}",
    "clock": "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}",
}
DIFFICULT = [
    "x", "", " ", "\n\nboth sides  ", "</think>", "<|im_end|>", "{{ 1 }}", "{% raw %}",
    "\ue0f00\ue0f1",
    "user", "a\\nb", "ä\u2028b", "&lt;<b>",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer("smollm", tmp_path_factory.mktemp("outline"))


def conversations():
    for content in DIFFICULT:
        for system in (None, f"{content}!"):
            yield chat(content, content, system)
            yield [*chat("a", content, system), *chat(content, "b")]


@pytest.mark.parametrize("name", OPAQUE)
def test_an_outlined_template_writes_what_the_template_writes(tokenizer, name):
    tokenizer.chat_template = OPAQUE[name]
    renderer = Renderer(tokenizer, "tokenizer")
    assert renderer._outline._outline(("user", "assistant"), False) is not None
    for messages in conversations():
        for ask, turns in ((False, messages), (True, messages[:-1])):
            expected = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=ask
            )
            assert renderer.text(turns, ask=ask) == expected


@pytest.mark.parametrize("name", LOOKING)
def test_a_template_that_looks_at_contents_is_called(tokenizer, name):
    tokenizer.chat_template = LOOKING[name]
    renderer = Renderer(tokenizer, "tokenizer")
    roles = ("user", "assistant") * 2
    assert renderer._outline is None or renderer._outline._outline(roles, False) is None
    for messages in conversations():
        assert renderer.text(messages) == tokenizer.apply_chat_template(messages, tokenize=False)


def test_a_template_may_refuse_a_row(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    renderer = Renderer(tokenizer, "tokenizer")
    assert renderer.text(chat("a", "b")) == "ab"
    with pytest.raises(TemplateRefused, match=r"^no system$"):
        renderer.text(chat("a", "b", "c"))
