"""The exported file computes what the checkpoint does: llama.cpp against transformers."""

import json
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.lab.engine_logits import distance
from tests.lab.engines import llama_server
from tests.lab.families import FAMILIES, GEMMA, LLAMA3_POSITIONS, LONGROPE, make_family
from tests.lab.tiny_models import base_gguf, base_model, make_model, varied_texts

import gguf
from tuneline.errors import RetryableError, UserError
from tuneline.gguf import architectures
from tuneline.gguf import export as gguf_export
from tuneline.gguf.export import export_gguf, read_header
from tuneline.models import load_tokenizer
from tuneline.serving.engines.llama_cpp.lib import LlamaLibrary
from tuneline.serving.engines.llama_cpp.scoring import tokenize_texts

TOKENS = [7, 300, 41, 2, 99, 480, 12, 12, 65, 200, 31, 8] * 4

PLAIN_POSITIONS = {"rope_type": "default", "rope_theta": 5000.0}
CASES = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("Llama", {"head_dim": 32}),
    "llama, all heads": ("Llama", {"num_key_value_heads": 4}),
    "llama 3.1 positions": ("Llama", {"rope_parameters": LLAMA3_POSITIONS}),
    "linear positions": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "gemma 3, stretched": (
        "Gemma3",
        {
            **GEMMA,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "phi-3, part of each head": (
        "Phi3",
        {"rope_parameters": {**PLAIN_POSITIONS, "partial_rotary_factor": 0.5}},
    ),
}
# The engine keeps its key-value cache in float16; 4e-6 nats are what that leaves here.
SAME = 3e-5


@pytest.fixture(scope="module")
def library() -> LlamaLibrary:
    return LlamaLibrary()


def divergence(library: LlamaLibrary, path: Path, model) -> float:
    """Mean KL divergence per token from transformers to the engine, nats."""
    return distance(library, path, model, TOKENS).kl


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case, tmp_path, library):
    architecture, config = CASES[case]
    model = make_model(tmp_path / "hf", architecture, **config)
    report = export_gguf(tmp_path / "hf", tmp_path / "m.gguf", dtype="f32")
    assert report.rounded_values == 0
    assert report.parameters == sum(p.numel() for p in model.parameters()) + (
        8 if "3.1" in case else 0  # the rotary divisors are a tensor of their own
    )
    assert divergence(library, tmp_path / "m.gguf", model) < SAME


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_each_family_equal_those_of_transformers(name, tmp_path, library):
    model = make_family(tmp_path / "hf", name)
    report = export_gguf(tmp_path / "hf", tmp_path / "m.gguf", dtype="f32")
    assert report.rounded_values == 0
    found = distance(library, tmp_path / "m.gguf", model, TOKENS)
    assert found.kl < SAME
    # 0.02 are measured, of logits from -7 to 8.
    assert found.largest < 0.05
    assert found.same_top > 0.97


@pytest.mark.parametrize("fault", ["heads", "rope"])
def test_the_comparison_sees_the_silent_faults(fault, tmp_path, library, monkeypatch):
    model = make_model(tmp_path / "hf")
    if fault == "heads":
        monkeypatch.setattr(gguf_export, "interleave_heads", lambda rows, _: rows)
    else:
        config = json.loads((tmp_path / "hf" / "config.json").read_text())
        del config["rope_parameters"]
        (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    export_gguf(tmp_path / "hf", tmp_path / "m.gguf", dtype="f32")
    assert divergence(library, tmp_path / "m.gguf", model) > 1e-2


GLOBAL_ONLY = {"rope_type": "default", "rope_theta": 1_000_000.0}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma 2", {"attn_logit_softcapping": 50.0}),
        ("gemma 2", {"final_logit_softcapping": 30.0}),
        ("gemma 2", {"sliding_window": 64}),
        ("gemma 3", {"sliding_window": 64}),
        (
            "gemma 3",
            {
                "rope_parameters": dict.fromkeys(
                    ("full_attention", "sliding_attention"), GLOBAL_ONLY
                )
            },
        ),
        (
            "phi-4-mini",
            {
                "rope_parameters": {
                    **LONGROPE,
                    "partial_rotary_factor": 1.0,
                    "short_factor": [1.0] * 8,
                    "long_factor": [1.0] * 8,
                }
            },
        ),
        ("phi-4-mini", {"rope_parameters": {**LONGROPE, "short_factor": LONGROPE["long_factor"]}}),
        ("phi-4-mini", {"rope_parameters": {**LONGROPE, "attention_factor": 1.0}}),
        ("phi-4-mini", {"original_max_position_embeddings": 2048}),
        ("qwen3", {"rms_norm_eps": 1e-1}),
    ],
)
def test_the_comparison_sees_a_wrong_setting(name, changes, tmp_path, library):
    """The settings of each family bear on the logits of its tiny model."""
    model = make_family(tmp_path / "hf", name)
    edit(tmp_path / "hf", **changes)
    export_gguf(tmp_path / "hf", tmp_path / "m.gguf", dtype="f32")
    assert divergence(library, tmp_path / "m.gguf", model) > 10 * SAME


def test_the_comparison_sees_norms_without_their_offset(tmp_path, library, monkeypatch):
    model = make_family(tmp_path / "hf", "gemma 3")
    bare = replace(architectures.FAMILIES["Gemma3ForCausalLM"], norm_offset=0.0)
    monkeypatch.setitem(architectures.FAMILIES, "Gemma3ForCausalLM", bare)
    export_gguf(tmp_path / "hf", tmp_path / "m.gguf", dtype="f32")
    assert divergence(library, tmp_path / "m.gguf", model) > 1e-2


def test_what_the_file_says(tmp_path):
    make_model(tmp_path / "hf", tokenizer="llama-bpe")
    export_gguf(tmp_path / "hf", tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["tokenizer.ggml.pre"] == "llama-bpe"
    assert fields["llama.rope.freq_base"] == 5000.0
    types = fields["tokenizer.ggml.token_type"]
    assert types[:3] == [gguf.TokenType.CONTROL] * 3
    assert types[3] == gguf.TokenType.NORMAL
    assert types[-1] == gguf.TokenType.UNUSED  # the embedding has more rows than tokens
    assert " " in fields["tokenizer.ggml.merges"][0]
    assert fields["tokenizer.ggml.eot_token_id"] == fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.chat_template"].startswith("{% for m in messages %}")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_norm.weight"] == kinds["output_norm.weight"] == "F32"
    assert kinds["blk.0.attn_q.weight"] == "F16"


def test_bfloat16_and_sharded_checkpoints(tmp_path, library):
    model = make_model(tmp_path / "hf").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "hf", max_shard_size="60KB")
    (tmp_path / "hf" / "model.safetensors").unlink(missing_ok=True)
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 1
    report = export_gguf(tmp_path / "hf", tmp_path / "m.gguf", dtype="bf16")
    assert report.rounded_values == 0
    # With bfloat16 weights the engine rounds the activations to bfloat16 too.
    assert divergence(library, tmp_path / "m.gguf", model.to(torch.float32)) < 1e-3


def edit(directory: Path, **changes) -> None:
    config = json.loads((directory / "config.json").read_text())
    config.update(changes)
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM can't be exported"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantised"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' can't be exported"),
        ({"hidden_act": "gelu"}, "no gelu"),
        ({"vocab_size": 400}, "resize the embedding"),
    ],
)
def test_what_can_not_be_exported_is_refused(changes, sentence, tmp_path):
    make_model(tmp_path / "hf")
    edit(tmp_path / "hf", **changes)
    with pytest.raises(UserError, match=sentence):
        export_gguf(tmp_path / "hf", tmp_path / "out" / "m.gguf")
    assert not list(tmp_path.glob("out/*"))


def test_a_tensor_without_a_place_is_refused(tmp_path):
    model = make_family(tmp_path / "hf", "qwen3")
    weights = dict(model.named_parameters()) | {"model.layers.0.self_attn.sinks": torch.zeros(4)}
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(UserError, match=r"sinks' has no place in a GGUF file .* qwen3"):
        export_gguf(tmp_path / "hf", tmp_path / "m.gguf")


def test_values_beyond_float16_are_refused_not_made_infinite(tmp_path):
    model = make_model(tmp_path / "hf")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path / "hf")
    with pytest.raises(UserError, match=r"blk.0.ffn_up.weight .*float16"):
        export_gguf(tmp_path / "hf", tmp_path / "m.gguf")
    assert list(tmp_path.glob("*.gguf")) == []
    written = export_gguf(tmp_path / "hf", tmp_path / "m.gguf", dtype="bf16")
    assert sum(written.types.values()) == 21


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    make_model(tmp_path / "hf")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(RetryableError, match="No space left"):
        export_gguf(tmp_path / "hf", tmp_path / "out" / "m.gguf")
    assert list((tmp_path / "out").iterdir()) == []


# Nats. The engine multiplies in float16, which moves the best token's log-probability by 0.01.
TIE = 0.02
PROMPTS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "My order 48213 has not arrived. Answer as JSON with the keys intent and reply.",
    "List three colours.",
    "Translate 'good morning' into Spanish.",
    "What is 12 plus 30?",
]


@pytest.mark.long
@pytest.mark.model
def test_greedy_text_of_the_base_model_equals_transformers_in_float32():
    from transformers import AutoModelForCausalLM

    directory = base_model().path
    tokenizer = load_tokenizer(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    identical = 0
    with llama_server(base_gguf(), ctx=512) as server, server.client() as client:
        for prompt in PROMPTS:
            messages = [{"role": "user", "content": prompt}]
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            start = inputs["input_ids"].shape[1]
            with torch.no_grad():
                output = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0]
                logits = model(output[None]).logits[0, start - 1 : -1]
            expected = tokenizer.decode(output[start:], skip_special_tokens=True)
            found = client.chat(messages, max_tokens=32).text
            if found == expected:
                identical += 1
                continue
            # Where the two best tokens are closer than the engine's own rounding, either may win.
            ids = tokenizer(found, add_special_tokens=False)["input_ids"]
            first = next(
                i for i, (a, b) in enumerate(zip(output[start:], ids, strict=False)) if a != b
            )
            best, second = logits[first].log_softmax(-1).topk(2).values
            assert best - second < TIE, f"{found!r} instead of {expected!r}"
    assert identical >= 4


@pytest.mark.model
def test_token_ids_of_the_base_model_equal_llama_cpp():
    texts = varied_texts(1500)
    tokenizer = load_tokenizer(base_model().path)
    expected = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert tokenize_texts(base_gguf(), texts) == expected
    # The server's own route gives the same.
    with llama_server(base_gguf(), ctx=64) as server:
        for text, ids in zip(texts[:50], expected[:50], strict=True):
            asked = {"content": text, "add_special": False, "parse_special": True}
            answer = httpx.post(f"{server.base_url}/tokenize", json=asked)
            assert answer.json()["tokens"] == ids


@pytest.mark.model
def test_the_export_of_the_base_model_is_lossless(tmp_path):
    report = export_gguf(base_model().path, tmp_path / "again.gguf")
    assert report.rounded_values == 0
    assert report.parameters == 134_515_008
    assert 270e6 < report.bytes < 272e6


def test_every_float_type_reads_as_torch_does(tmp_path):
    tensors = {
        "b": torch.randn(3, 5).to(torch.bfloat16),
        "a": torch.randn(7).to(torch.float16),
        "c": torch.randn(2, 2, 2),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    found = {stored.name: stored for stored in read_header(tmp_path / "model.safetensors")}
    assert list(found) == ["a", "b", "c"]
    for name, tensor in tensors.items():
        assert found[name].shape == tuple(tensor.shape)
        assert np.array_equal(found[name].float32(), tensor.to(torch.float32).numpy())


def test_quantised_weights_are_refused(tmp_path):
    save_file({"w": torch.zeros(4, dtype=torch.int8)}, tmp_path / "q.safetensors")
    (stored,) = read_header(tmp_path / "q.safetensors")
    with pytest.raises(UserError, match="dequantised first"):
        stored.float32()


def test_a_file_cut_short_is_refused(tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_file({"w": torch.randn(100)}, whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(UserError, match="cut short"):
        list(read_header(cut))
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"not a safetensors file at all")
    with pytest.raises(UserError, match="not a safetensors file"):
        list(read_header(other))
