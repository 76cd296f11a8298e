"""transformers 4 reads a copied checkpoint as the same model."""

import shutil

import pytest

from tuneline.errors import UserError
from tuneline.models.base_model import read_json
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import BuildRequest
from tuneline.serving.engines.server import ServeRequest
from tuneline.serving.engines.tensorrt_llm import build as commands
from tuneline.serving.engines.tensorrt_llm.build import (
    copy_portable,
    portable_config,
    portable_tokenizer_config,
)
from tuneline.serving.engines.tensorrt_llm.engine import TrtllmServer


def test_the_rotary_base_stands_where_transformers_4_looks(tiny_dir, tmp_path):
    config = read_json(tiny_dir / "config.json")
    assert config["rope_parameters"]["rope_theta"] == 5000.0
    assert "rope_theta" not in config
    copy_portable(tiny_dir, tmp_path / "copy", weights=True)
    copied = read_json(tmp_path / "copy" / "config.json")
    assert copied["rope_theta"] == 5000.0
    assert copied["torch_dtype"] == copied["dtype"]
    assert "rope_scaling" not in copied
    assert (tmp_path / "copy" / "model.safetensors").is_symlink()
    tokenizer = read_json(tmp_path / "copy" / "tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_scaled_rotary_embeddings_keep_their_scaling():
    rope = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0}
    found = portable_config({"rope_parameters": rope})
    assert found["rope_theta"] == 500000.0
    assert found["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0}
    layers = {"full_attention": rope, "sliding_attention": rope}
    with pytest.raises(UserError, match="layers have different rotary embeddings"):
        portable_config({"rope_parameters": layers})


def test_special_tokens_in_a_list():
    found = portable_tokenizer_config({"extra_special_tokens": ["<a>"], "backend": "tokenizers"})
    assert found["additional_special_tokens"] == ["<a>"]
    assert "backend" not in found


def test_a_checkpoint_as_it_was_exported_would_give_another_model(
    image, tiny_dir, tmp_path, monkeypatch, built
):
    """The planted fault: transformers 4 takes a rotary base of 10000 and says nothing."""

    def as_it_is(source, target, *, weights):
        shutil.copytree(source, target)

    def answer(folder):
        server = TrtllmServer(ServeRequest(folder, "m", 2, 512), "tensorrt")
        prompt = [{"role": "user", "content": "the quick brown fox jumps over the dog"}]
        with server, server.client() as client:
            return client.chat(prompt, max_tokens=24, logprobs=True)

    monkeypatch.setattr(commands, "copy_portable", as_it_is)
    request = BuildRequest(tiny_dir, tmp_path / "wrong", max_batch_size=2, max_total_tokens=2048)
    assert get_engine("tensorrt_llm").build(request).built
    assert answer(tmp_path / "wrong").logprobs != answer(built).logprobs
