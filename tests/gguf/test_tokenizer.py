"""llama.cpp gives the ids of the Hugging Face tokenizer, for every pre-tokenizer that is known."""

import json
import unicodedata

import pytest
from tests.lab.tiny_models import make_model, make_tokenizer, varied_texts

import gguf
from tuneline.errors import UserError
from tuneline.gguf.export import export_gguf
from tuneline.gguf.tokenizer import pre_tokenizer_name, read_tokenizer
from tuneline.models import load_tokenizer
from tuneline.serving.engines.llama_cpp.perplexity import tokenize_texts


def differing(directory, path, texts):
    expected = load_tokenizer(directory)(texts, add_special_tokens=False)["input_ids"]
    found = tokenize_texts(path, texts)
    return [text for text, want, have in zip(texts, expected, found, strict=True) if want != have]


@pytest.mark.parametrize("kind", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
def test_ids_agree(kind, tmp_path):
    make_model(tmp_path, tokenizer=kind)
    export_gguf(tmp_path, tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == kind
    texts = varied_texts(1200)
    if kind == "qwen2":
        # llama.cpp does not normalise; texts that are not NFC get other ids there.
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    assert differing(tmp_path, tmp_path / "m.gguf", texts) == []


def test_a_wrong_name_is_seen(tmp_path, monkeypatch):
    make_model(tmp_path, tokenizer="gpt-2")
    monkeypatch.setattr("tuneline.gguf.tokenizer.pre_tokenizer_name", lambda *_: "llama-bpe")
    export_gguf(tmp_path, tmp_path / "m.gguf")
    assert len(differing(tmp_path, tmp_path / "m.gguf", varied_texts(300))) > 10


def test_rules_that_differ_in_one_flag_are_unknown(tmp_path):
    make_tokenizer("smollm", tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    assert pre_tokenizer_name(document, tmp_path) == "smollm"
    document["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = False
    with pytest.raises(UserError, match="wrong token ids"):
        pre_tokenizer_name(document, tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "Lowercase"}
    with pytest.raises(UserError, match="Lowercase"):
        pre_tokenizer_name(document, tmp_path)


def test_a_bos_that_the_tokenizer_adds_is_noted(tmp_path):
    from tokenizers import Tokenizer, processors

    make_tokenizer("smollm", tmp_path)
    assert not read_tokenizer(tmp_path, 512).add_bos
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path, 512).add_bos


def test_other_kinds_of_tokenizers_are_refused(tmp_path):
    make_tokenizer("smollm", tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["model"] = {"type": "Unigram", "vocab": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="only byte-level BPE"):
        read_tokenizer(tmp_path, 512)
