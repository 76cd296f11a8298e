import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tuneline.errors import UserError
from tuneline.serving.gateway.chain.upstream import TokenCounter, message_texts


@pytest.fixture
def tokenizer_file(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"hello": 0, "world": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_a_tokenizer_counts_exactly(tokenizer_file):
    counter = TokenCounter(tokenizer_file)
    assert counter.text("hello world hello", chunks=99) == 3
    assert counter.text("") == 0
    assert counter.text("hello \ud800") == 2
    assert counter.messages([{"role": "user", "content": "hello world"}]) == 3 + 4 + 2


def test_without_one_chunks_or_bytes_count():
    counter = TokenCounter(None)
    assert counter.text("x" * 9) == 3
    assert counter.text("x" * 9, chunks=5) == 5
    assert counter.text("") == 0


def test_texts_of_messages():
    assert message_texts({"content": "a"}) == ["a"]
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, "b"]
    assert message_texts({"content": parts}) == ["a"]
    assert message_texts({"content": None}) == []
    assert message_texts("a") == []


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    for text in (None, "{}"):
        if text:
            path.write_text(text)
        with pytest.raises(UserError, match=r"tokenizer\.json"):
            TokenCounter(path)
