"""The exported file computes what the checkpoint does, and a quantised one nearly that."""

import ctypes
import json
from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.lab.engines import llama_server
from tests.lab.families import FAMILIES, GEMMA, LONGROPE, distance, make_family
from tests.lab.tiny_models import base_gguf, base_model, make_model, varied_texts

import gguf
from tuneline.deployment.merging.checkpoints import ScoredRows, rounding_ratio
from tuneline.errors import RetryableError, UserError
from tuneline.gguf import architectures
from tuneline.gguf import export as gguf_export
from tuneline.gguf.export import QUANTISATIONS, export_gguf, quantize, read_header
from tuneline.models import load_tokenizer
from tuneline.serving.engines.divergence import checkpoint_losses, rows_of
from tuneline.serving.engines.llama_cpp.lib import LlamaLibrary, LlamaModel
from tuneline.serving.engines.llama_cpp.scoring import sequence_losses, tokenize_texts

TOKENS = [7, 300, 41, 2, 99, 480, 12, 12, 65, 200, 31, 8] * 4
STRETCHED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
PARTIAL = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
# Each family, and settings that the tiny models of the families leave alone.
CASES = [
    *((name, {}) for name in FAMILIES),
    ("smollm", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    ("smollm", {"num_key_value_heads": 4}),
    ("smollm", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    ("gemma 3", {**GEMMA, "num_hidden_layers": 7, "rope_parameters": STRETCHED}),
    ("phi-3", {"rope_parameters": PARTIAL}),
]
# The engine keeps its key-value cache in float16; 4e-6 nats are what that leaves here.
SAME = 3e-5


@pytest.fixture(scope="module")
def library() -> LlamaLibrary:
    return LlamaLibrary()


@pytest.mark.parametrize(("name", "config"), CASES)
def test_logits_equal_those_of_transformers(name, config, tmp_path, library):
    model = make_family(tmp_path / "hf", name, **config)
    report = export_gguf(tmp_path / "hf", tmp_path / "m.gguf", dtype="f32")
    assert report.rounded_values == 0
    found = distance(library, tmp_path / "m.gguf", model, TOKENS)
    assert found.kl < SAME
    # 0.02 are measured, of logits from -7 to 8.
    assert found.largest < 0.05
    assert found.same_top > 0.97


def edit(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


def wrong(**changes):
    """Plant settings that the model was not made with."""
    return lambda directory, _: edit(directory, **changes)


def no_reordering(_, patch):
    patch.setattr(gguf_export, "interleave_heads", lambda rows, _: rows)


def no_offset(_, patch):
    bare = replace(architectures.FAMILIES["Gemma3ForCausalLM"], norm_offset=0.0)
    patch.setitem(architectures.FAMILIES, "Gemma3ForCausalLM", bare)


GLOBAL = {"rope_type": "default", "rope_theta": 1_000_000.0}
GLOBAL_ONLY = {"full_attention": GLOBAL, "sliding_attention": GLOBAL}
UNSTRETCHED = {
    **LONGROPE,
    "partial_rotary_factor": 1.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0] * 8,
}


@pytest.mark.parametrize(
    ("name", "plant", "least"),
    [
        ("smollm", no_reordering, 1e-2),
        ("smollm", wrong(rope_parameters=None), 1e-2),
        ("gemma 3", no_offset, 1e-2),
        ("gemma 2", wrong(attn_logit_softcapping=50.0), 10 * SAME),
        ("gemma 2", wrong(final_logit_softcapping=30.0), 10 * SAME),
        ("gemma 2", wrong(sliding_window=64), 10 * SAME),
        ("gemma 3", wrong(sliding_window=64), 10 * SAME),
        ("gemma 3", wrong(rope_parameters=GLOBAL_ONLY), 10 * SAME),
        ("phi-4-mini", wrong(rope_parameters=UNSTRETCHED), 10 * SAME),
        (
            "phi-4-mini",
            wrong(rope_parameters={**LONGROPE, "short_factor": LONGROPE["long_factor"]}),
            10 * SAME,
        ),
        ("phi-4-mini", wrong(rope_parameters={**LONGROPE, "attention_factor": 1.0}), 10 * SAME),
        ("phi-4-mini", wrong(original_max_position_embeddings=2048), 10 * SAME),
        ("qwen3", wrong(rms_norm_eps=1e-1), 10 * SAME),
    ],
)
def test_the_comparison_sees_silent_faults(name, plant, least, tmp_path, library, monkeypatch):
    """A wrong order of rows, no offset, or a setting of the family's that is another."""
    model = make_family(tmp_path / "hf", name)
    plant(tmp_path / "hf", monkeypatch)
    export_gguf(tmp_path / "hf", tmp_path / "m.gguf", dtype="f32")
    assert distance(library, tmp_path / "m.gguf", model, TOKENS).kl > least


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
    found = distance(library, tmp_path / "m.gguf", model.to(torch.float32), TOKENS)
    assert found.kl < 1e-3


def too_large(directory, model):
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(directory)


def no_place(directory, model):
    weights = dict(model.named_parameters()) | {"model.layers.0.self_attn.sinks": torch.zeros(4)}
    save_file(weights, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (lambda directory, _: edit(directory, hidden_act="gelu"), "no gelu"),
        (lambda directory, _: edit(directory, vocab_size=400), "resize the embedding"),
        (no_place, r"sinks' has no place in a GGUF file .* llama"),
        (too_large, r"blk.0.ffn_up.weight .*float16"),
    ],
)
def test_what_can_not_be_exported_leaves_nothing(plant, sentence, tmp_path):
    plant(tmp_path / "hf", make_model(tmp_path / "hf"))
    with pytest.raises(UserError, match=sentence):
        export_gguf(tmp_path / "hf", tmp_path / "out" / "m.gguf")
    assert not list(tmp_path.glob("out/*"))
    if plant is too_large:
        assert export_gguf(tmp_path / "hf", tmp_path / "m.gguf", dtype="bf16").path.exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    make_model(tmp_path / "hf")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(RetryableError, match="No space left"):
        export_gguf(tmp_path / "hf", tmp_path / "out" / "m.gguf")
    assert list((tmp_path / "out").iterdir()) == []


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


def test_weights_that_can_not_be_read_are_refused(tmp_path):
    file = tmp_path / "w.safetensors"
    save_file({"w": torch.zeros(400, dtype=torch.int8)}, file)
    (stored,) = read_header(file)
    with pytest.raises(UserError, match="dequantised first"):
        stored.float32()
    for raw, words in ((file.read_bytes()[:-40], "cut short"), (b"not one", "not a safetensors")):
        file.write_bytes(raw)
        with pytest.raises(UserError, match=words):
            list(read_header(file))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    make_model(directory / "hf")
    return export_gguf(directory / "hf", directory / "f16.gguf").path


@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_the_blocks_are_those_of_ggml(kind, library):
    """The same bytes as ggml's own C code writes (`ggml_quantize_chunk`)."""
    name, _ = QUANTISATIONS[kind]
    number = gguf.GGMLQuantizationType[name]
    rows = np.random.default_rng(1).normal(size=(64, 256)).astype(np.float32)
    ours = gguf.quants.quantize(rows, number)
    theirs = np.zeros_like(ours)
    function = library.lib.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, wide = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, wide, wide, wide, pointer]
    written = function(
        int(number), rows.ctypes.data, theirs.ctypes.data, 0, rows.shape[0], rows.shape[1], None
    )
    assert written == ours.nbytes
    assert (ours == theirs).mean() > 0.999


@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_a_quantised_file(kind, tiny, tmp_path, library):
    quantize(tiny, tmp_path / "q.gguf", kind)
    reader = gguf.GGUFReader(tmp_path / "q.gguf")
    name, number = QUANTISATIONS[kind]
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.ffn_up.weight"] == name
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert types["blk.1.attn_norm.weight"] == "F32"
    assert reader.fields["general.file_type"].contents() == number
    assert sum(kind in (name, "Q8_0") for kind in types.values()) == 16
    source = gguf.GGUFReader(tiny)
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "llama.rope.freq_base"):
        assert reader.fields[key].contents() == source.fields[key].contents()
    with LlamaModel(library, tmp_path / "q.gguf", context=16) as model:
        assert np.isfinite(model.logits([3, 4, 5])).all()
    with pytest.raises(UserError, match=r"Q\d_\d already"):
        quantize(tmp_path / "q.gguf", tmp_path / "twice.gguf", "q4_0")
    assert not (tmp_path / "twice.gguf").exists()


def test_rows_that_no_block_fits_stay_float16(tmp_path):
    make_model(tmp_path / "hf", intermediate_size=100)
    export_gguf(tmp_path / "hf", tmp_path / "f16.gguf")
    report = quantize(tmp_path / "f16.gguf", tmp_path / "q.gguf", "q8_0")
    tensors = gguf.GGUFReader(report.path).tensors
    kept = {tensor.name for tensor in tensors if tensor.tensor_type.name == "F16"}
    assert kept == {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"}


@pytest.mark.model
def test_the_base_model_differs_from_transformers_by_less_than_rounding(tmp_path):
    directory, texts = base_model().path, varied_texts(16)
    report = export_gguf(directory, tmp_path / "f16.gguf")
    assert report.rounded_values == 0
    ids = load_tokenizer(directory)(texts, add_special_tokens=False)["input_ids"]
    rows = rows_of([row[:64] for row in ids], [1] * len(ids))
    exact, rounded = (
        checkpoint_losses(directory, rows, dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    scored = ScoredRows(("",) * len(rows), rows, exact, rounded)
    assert rounding_ratio(scored, sequence_losses(report.path, rows), 1 / 8).upper < 1.0
    assert rounding_ratio(scored, rounded, 1 / 8).lower > 2.0


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
