import pytest
from tests.lab.data_runs import chat
from tests.lab.tiny_models import make_tokenizer

from tuneline.data.rendering.renderer import Renderer
from tuneline.errors import UserError
from tuneline.models import load_tokenizer

CONVERSATIONS = [
    chat("hi there", "ho"),
    chat("Où est  le café? 你好 🎉", '{"a": 1}', "Be brief."),
    [*chat("one", "two", "Be brief."), *chat("three\n\nfour", "five ")],
]


@pytest.fixture(scope="module")
def tokenizer(base_dir):
    return load_tokenizer(base_dir)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    tokenizer = make_tokenizer("llama-bpe", tmp_path_factory.mktemp("llama"))
    names = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens(
        {"bos_token": names[0], "eos_token": names[3], "additional_special_tokens": names[1:3]}
    )
    return tokenizer


def render(messages, tokenizer, target):
    return Renderer(tokenizer, target).render([messages])[0]


def learnt(tokenizer, example):
    """The texts of the runs of tokens that count for the loss."""
    runs, current = [], []
    for token, counts in zip(example.ids, example.loss_mask, strict=True):
        if counts:
            current.append(token)
        elif current:
            runs.append(tokenizer.decode(current))
            current = []
    return [*runs, tokenizer.decode(current)] if current else runs


@pytest.mark.parametrize("target", ["tokenizer", "chatml", "alpaca"])
def test_tokens_are_those_of_the_template(tokenizer, target):
    renderer = Renderer(tokenizer, target)
    rendered = renderer.render(CONVERSATIONS)
    assert [example.ids for example in rendered] == renderer.template_ids(CONVERSATIONS)
    assert renderer.count([example.text for example in rendered]) == [
        len(example.ids) for example in rendered
    ]


def test_llama3(llama):
    renderer = Renderer(llama, "llama3")
    rendered = renderer.render(CONVERSATIONS)
    assert [example.ids for example in rendered] == renderer.template_ids(CONVERSATIONS)
    # Its template trims what is said, so the space after "five" is not there.
    assert learnt(llama, rendered[2]) == ["two<|eot_id|>", "five<|eot_id|>"]
    assert rendered[0].text.startswith("<|begin_of_text|><|start_header_id|>user")


def test_mask_covers_answers_and_their_end(tokenizer):
    rendered = Renderer(tokenizer, "tokenizer").render(CONVERSATIONS)
    assert [learnt(tokenizer, example) for example in rendered] == [
        ["ho<|im_end|>"],
        ['{"a": 1}<|im_end|>'],
        ["two<|im_end|>", "five <|im_end|>"],
    ]


def test_alpaca_ends_with_the_end_of_sequence(tokenizer):
    example = render(CONVERSATIONS[0], tokenizer, "alpaca")
    assert "### Instruction:\nhi there\n\n### Response:\nho" in example.text
    assert learnt(tokenizer, example) == ["ho<|im_end|>"]


def test_an_answer_that_merges_with_the_prompt_has_no_mask(tokenizer):
    # "\n" of the template and "\n" of the answer may become one token "\n\n".
    ids = tokenizer("\n\n\n", add_special_tokens=False)["input_ids"]
    assert len(ids) < 3, "the tokenizer of this test must merge line ends"
    example = render(chat("hi", "\n\nho"), tokenizer, "tokenizer")
    assert example.loss_mask is None


def test_default_system_prompt_of_a_template_is_kept(tokenizer):
    from copy import deepcopy

    other = deepcopy(tokenizer)
    other.chat_template = (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
        "{{ '<|im_start|>system\nBe nice.<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    example = render(CONVERSATIONS[0], other, "tokenizer")
    assert example.text.startswith("<|im_start|>system\nBe nice.")
    assert learnt(other, example) == ["ho<|im_end|>"]


def test_a_tokenizer_without_the_tokens_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"llama3 needs <\|start_header_id\|>"):
        Renderer(tokenizer, "llama3")


@pytest.mark.model
def test_the_laptop_model():
    from tests.lab.tiny_models import base_model

    tokenizer = load_tokenizer(base_model().path)
    for target in ("tokenizer", "chatml", "alpaca"):
        renderer = Renderer(tokenizer, target)
        rendered = renderer.render(CONVERSATIONS)
        assert [example.ids for example in rendered] == renderer.template_ids(CONVERSATIONS)
        assert learnt(tokenizer, rendered[0]) == ["ho<|im_end|>"]
