import pytest
from tests.lab.data_runs import chat
from tests.lab.tiny_models import make_tokenizer, varied_texts

from tuneline.data.rendering.pieces import BATCH
from tuneline.data.rendering.renderer import Renderer, compare

SHORT = (
    "{% for m in messages %}{% if 'long' in m.content %}{{ raise_exception('too long') }}"
    "{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer(tmp_path):
    return make_tokenizer("smollm", tmp_path)


def rows(count):
    texts = [text.replace("<|im_", "") for text in varied_texts(2 * count)]
    return [chat(f"u {a}", f"a {b}") for a, b in zip(texts[::2], texts[1::2], strict=True)]


def test_clean_rows_over_several_batches(tokenizer):
    found = list(compare(rows(2 * BATCH + 5), Renderer(tokenizer, "tokenizer")))
    assert len(found) == 2 * BATCH + 5
    assert all(p.reason is None and p.tokens_equal and p.mask_exact for p in found)
    assert list(compare([], Renderer(tokenizer, "tokenizer"))) == []


def test_rows_that_a_template_refuses_or_leaves_out(tokenizer):
    tokenizer.chat_template = SHORT
    found = list(compare([*rows(2), chat("long", "b"), *rows(1)], Renderer(tokenizer, "tokenizer")))
    assert [p.reason for p in found] == [None, None, "template_refused: too long", None]
    tokenizer.chat_template = SHORT.replace(
        "'long' in m.content %}{{ raise_exception('too long') }}{% endif %}",
        "m.role != 'system' %}",
    ).replace("{% endfor %}", "{% endif %}{% endfor %}", 1)
    found = list(compare([chat("a", "b", "Be brief."), *rows(1)], Renderer(tokenizer, "tokenizer")))
    assert found[0].reason == "turn_left_out: the template does not write turn 1 (system)"
    assert found[1].reason is None
    only_refused = list(compare([chat("a", "b", "Be brief.")], Renderer(tokenizer, "tokenizer")))
    assert [p.tokens_equal for p in only_refused] == [None]


def test_a_prompt_that_is_no_beginning_of_the_row(tokenizer):
    tokenizer.chat_template = SHORT.replace("assistant\n' }}{% endif", "assistant\n<t>' }}{% endif")
    (found,) = compare([chat("a", "b")], Renderer(tokenizer, "tokenizer"))
    assert found.reason.startswith("mask_boundary: the chat template does not begin the row")
    assert found.tokens_equal


def test_other_ids_are_seen(tokenizer, monkeypatch):
    renderer = Renderer(tokenizer, "tokenizer")
    own = renderer.template_ids

    def one_off(batch):
        ids = own(batch)
        ids[1][-1] += 1
        return ids

    monkeypatch.setattr(renderer, "template_ids", one_off)
    assert [p.tokens_equal for p in compare(rows(3), renderer)] == [True, False, True]


def test_rows_are_encoded_by_transformers_where_the_tokenizer_alone_differs(tokenizer, monkeypatch):
    renderer = Renderer(tokenizer, "tokenizer")
    whole = renderer.template_ids(rows(5))
    assert [p.tokens_equal for p in compare(rows(5), renderer)] == [True] * 5
    monkeypatch.setattr(renderer._pieces, "encode_whole", lambda texts: [[1, 2]] * len(texts))
    assert renderer.template_ids(rows(5)) == whole
