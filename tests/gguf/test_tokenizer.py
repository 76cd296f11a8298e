"""llama.cpp gives the ids of the Hugging Face tokenizer, for every pre-tokenizer that is known."""

import itertools
import json
import random
import unicodedata

import pytest
from tests.lab.tiny_models import make_model, varied_texts

import gguf
from tuneline.errors import UserError
from tuneline.gguf.export import export_gguf, quantize
from tuneline.gguf.tokenizer import read_tokenizer, refuse_foreign, scores
from tuneline.models import load_tokenizer
from tuneline.serving.engines.llama_cpp.scoring import tokenize_texts


def differing(directory, path, texts):
    expected = load_tokenizer(directory)(texts, add_special_tokens=False)["input_ids"]
    found = tokenize_texts(path, texts)
    return [text for text, want, have in zip(texts, expected, found, strict=True) if want != have]


# llama.cpp's name for the rules of each kind.
NAMES = {
    **{kind: kind for kind in ("smollm", "gpt-2", "llama-bpe", "dbrx", "qwen2", "tekken")},
    "gpt-4o": "granite-embed-multi-97m",
    **dict.fromkeys(("gemma", "phi-3", "mistral"), "default"),
}


def probes(kind, tokenizer):
    """Texts of many kinds, with runs of white space and with special tokens between them."""
    choose = random.Random(3)
    pieces = " |  |     |\n|\n\n\n\n|\t| a|Order|42|!!|é|мир|世界".split("|")
    runs = ["".join(choose.choices(pieces, k=choose.randint(1, 14))) for _ in range(500)]
    texts = varied_texts(1200) + runs
    special = [str(token) for token in tokenizer.all_special_tokens]
    between = zip(texts[:300], texts[300:600], strict=True)
    texts += [choose.choice(special) + a + choose.choice(special) + b for a, b in between]
    if kind == "qwen2":
        # llama.cpp does not normalise; texts that are not NFC get other ids there.
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    if kind == "mistral":
        # It puts a space before the first text, which llama.cpp can't do for the first alone.
        texts = ["<s>" + text for text in texts]
    if kind in ("gpt-4o", "tekken"):
        texts = [text for text in texts if not mixed_case(text)]
    return texts


def mixed_case(text):
    """A capital follows a small letter of another alphabet; docs/deployment.md has the limit."""
    return any(
        not a.isascii() and not b.isascii() and a.islower() and b.isupper()
        for a, b in itertools.pairwise(text)
    )


@pytest.mark.parametrize("kind", NAMES)
def test_ids_agree(kind, tmp_path):
    make_model(tmp_path, tokenizer=kind)
    export_gguf(tmp_path, tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == NAMES[kind]
    texts = probes(kind, load_tokenizer(tmp_path))
    assert len(texts) > 1500
    assert differing(tmp_path, tmp_path / "m.gguf", texts) == []


def test_a_quantised_copy_keeps_the_scores(tmp_path):
    make_model(tmp_path, tokenizer="gemma")
    export_gguf(tmp_path, tmp_path / "m.gguf")
    quantize(tmp_path / "m.gguf", tmp_path / "q.gguf")
    assert differing(tmp_path, tmp_path / "q.gguf", varied_texts(300)) == []


def test_phi3s_special_tokens_take_the_line_end_after_them(tmp_path, monkeypatch):
    """llama.cpp does so by the model's name; without it the ids are others."""
    make_model(tmp_path / "phi", tokenizer="phi-3")
    texts = ["<|user|>\nHello<|end|>\n<|assistant|>\n"]
    export_gguf(tmp_path / "phi", tmp_path / "m.gguf")
    assert differing(tmp_path / "phi", tmp_path / "m.gguf", texts) == []
    monkeypatch.setattr("tuneline.gguf.tokenizer._strips_as_phi3", lambda *_: False)
    export_gguf(tmp_path / "phi", tmp_path / "n.gguf")
    assert differing(tmp_path / "phi", tmp_path / "n.gguf", texts) == texts


def test_a_folder_named_after_phi3_says_nothing_about_the_tokenizer(tmp_path):
    """llama.cpp can't load a file of that name whose tokenizer lacks Phi-3's tokens."""
    make_model(tmp_path / "my-Phi-3-rival", tokenizer="smollm")
    export_gguf(tmp_path / "my-Phi-3-rival", tmp_path / "m.gguf")
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["general.name"].contents() == "model"
    texts = ["<|im_start|> Hello"]
    assert differing(tmp_path / "my-Phi-3-rival", tmp_path / "m.gguf", texts) == []


def test_a_wrong_name_is_seen(tmp_path, monkeypatch):
    make_model(tmp_path, tokenizer="gpt-2")
    monkeypatch.setattr("tuneline.gguf.tokenizer.pre_tokenizer_name", lambda _: "llama-bpe")
    export_gguf(tmp_path, tmp_path / "m.gguf")
    assert len(differing(tmp_path, tmp_path / "m.gguf", varied_texts(300))) > 10


@pytest.mark.parametrize(
    ("kind", "template", "adds"),
    [("gemma", "{{ bos_token }}", True), ("gemma", "", False), ("phi-3", "", False)],
)
def test_a_bos_is_put_before_a_chat_if_its_template_writes_it(kind, template, adds, tmp_path):
    """A template without BOS trains without it, whatever the tokenizer adds to plain texts."""
    make_model(tmp_path, tokenizer=kind)
    assert kind == "phi-3" or load_tokenizer(tmp_path)("a")["input_ids"][0] == 2
    file = tmp_path / "chat_template.jinja"
    file.write_text(file.read_text().replace("{{ bos_token }}", template))
    assert read_tokenizer(tmp_path, 512)["add_bos_token"] is adds


MERGES = [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]
VOCABULARY = {token: index for index, token in enumerate(["a", "b", "c", "ab", "bc", "abc"])}


def test_earlier_merges_have_higher_scores():
    assert scores(VOCABULARY, MERGES, ()) == {"ab": 0.0, "bc": -1.0, "abc": -2.0}
    # Special tokens are split off before.
    assert scores(VOCABULARY, MERGES[:2], ("abc",)) == {"ab": 0.0, "bc": -1.0}


@pytest.mark.parametrize(
    ("merges", "sentence"),
    [
        (MERGES[:3], "does not merge 'ab' and 'c'"),
        ([MERGES[0], MERGES[2], MERGES[1], MERGES[3]], "merges for 'abc' stand between"),
    ],
)
def test_merges_that_no_scores_give_are_refused(merges, sentence):
    with pytest.raises(UserError, match=sentence):
        scores(VOCABULARY, merges, ())


def test_runs_of_one_character_may_share_a_score():
    merges = [("▁▁", "▁▁"), ("▁▁", "▁"), ("▁", "▁▁▁"), ("▁", "▁▁"), ("▁▁▁", "▁"), ("▁", "▁")]
    vocabulary = {"▁" * n: n for n in range(1, 5)}
    found = scores(vocabulary, merges, ())
    assert found["▁▁▁▁"] == found["▁▁▁"] > found["▁▁"]


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("gemma", lambda d: d["model"].update(byte_fallback=False), "wrong token ids"),
        ("gemma", lambda d: d["model"].update(ignore_merges=True), "wrong token ids"),
        ("gemma", lambda d: d["model"]["vocab"].pop("<0xE4>"), "wrong token ids"),
        ("gemma", lambda d: d.update(normalizer={"type": "NFKC"}), "wrong token ids"),
        ("gemma", lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "wrong token ids"),
        (
            "smollm",
            lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(individual_digits=False),
            "wrong token ids",
        ),
        ("smollm", lambda d: d.update(normalizer={"type": "Lowercase"}), "Lowercase"),
        ("smollm", lambda d: d.update(model={"type": "Unigram"}), "only BPE tokenizers"),
    ],
)
def test_rules_that_llama_cpp_does_not_have_are_refused(kind, change, sentence, tmp_path):
    make_model(tmp_path, tokenizer=kind)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    assert refuse_foreign(document, tmp_path)
    change(document)
    with pytest.raises(UserError, match=sentence):
        refuse_foreign(document, tmp_path)


def test_a_vocabulary_that_was_trained_otherwise_is_refused_with_its_file(tmp_path):
    make_model(tmp_path, tokenizer="phi-3")
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    merges = document["model"]["merges"]
    several = [merge for merge in merges if len("".join(merge)) > 2]
    merges.remove(several[0])
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"tokenizer\.json: the tokenizer does not merge"):
        read_tokenizer(tmp_path, 512)
