import random
from types import SimpleNamespace

import pytest
from tests.lab.tiny_models import make_tokenizer, varied_texts

from tuneline.data.rendering.pieces import BATCH, PieceEncoder, cutting_points


@pytest.fixture
def backend(tmp_path):
    return make_tokenizer("smollm", tmp_path).backend_tokenizer


def whole(backend, texts):
    return [e.ids for e in backend.encode_batch(texts, add_special_tokens=False)]


def spoken(count, tokens, seed=3):
    """Texts with added tokens at any place, whole and broken."""
    choose = random.Random(seed)
    parts = [*varied_texts(200), *tokens * 20, *(token[:-1] for token in tokens), " ", "\n", ""]
    return ["".join(choose.choices(parts, k=choose.randint(1, 9))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
def test_pieces_have_the_ids_of_the_whole(tmp_path, kind):
    backend = make_tokenizer(kind, tmp_path).backend_tokenizer
    encoder = PieceEncoder(backend)
    texts = spoken(2 * BATCH + 7, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    expected = whole(backend, texts)
    assert encoder.encode(texts) == expected
    assert encoder.count(iter(texts)) == [len(ids) for ids in expected]
    assert any(len(encoder.cut(text)) > 3 for text in texts)
    assert all("".join(encoder.cut(text)) == text for text in texts)


def test_tokens_that_overlap_swallow_spaces_or_are_normalised(backend):
    from tokenizers import AddedToken

    backend.add_special_tokens(
        [
            AddedToken("<<|im_end|>", normalized=False),
            AddedToken("<mask>", lstrip=True, normalized=False),
            AddedToken("<|turn|>", rstrip=True, normalized=False),
        ]
    )
    backend.add_tokens([AddedToken("<think>", normalized=True)])
    tokens = ["<|im_end|>", "<<|im_end|>", "<mask>", "<|turn|>", "<think>", "<|im_start|>"]
    texts = spoken(1500, tokens, seed=5)
    encoder = PieceEncoder(backend)
    assert encoder.encode(texts) == whole(backend, texts)
    assert encoder.cut("a <mask>b<<|im_end|>c") == ["a <mask>b", "<<|im_end|>c"]


def test_whole_words_only_means_whole_texts(backend):
    from tokenizers import AddedToken

    backend.add_special_tokens([AddedToken("<w>", single_word=True, normalized=False)])
    assert cutting_points(backend) is None
    texts = spoken(300, ["<w>", "<|im_end|>"])
    encoder = PieceEncoder(backend)
    assert encoder.cut("a<|im_end|>b<w>") == ["a<|im_end|>b<w>"]
    assert encoder.encode(texts) == whole(backend, texts)


def test_a_tokenizer_that_reads_on_over_a_token_is_not_cut():
    class Backend:
        """Counts characters from the start of the text, so that pieces differ from the whole."""

        truncation = padding = None
        encode_special_tokens = False

        def get_added_tokens_decoder(self):
            token = SimpleNamespace(
                content="<s>", normalized=False, single_word=False, lstrip=False, rstrip=False
            )
            return {0: token}

        def encode_batch_fast(self, texts, add_special_tokens):
            return [SimpleNamespace(ids=list(range(len(text)))) for text in texts]

    encoder = PieceEncoder(Backend())
    assert encoder.cut("a<s>b") == ["a<s>b"]
    assert encoder.encode(["a<s>b"]) == [[0, 1, 2, 3, 4]]


def test_what_a_user_switched_on_is_switched_off(backend):
    text = "one two three four"
    expected = whole(backend, [text])
    encoder = PieceEncoder(backend)
    backend.enable_truncation(2)
    backend.enable_padding(length=64)
    assert encoder.encode([text]) == expected
    assert encoder.count([]) == []
