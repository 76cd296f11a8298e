"""Quantised files: the engine's own bytes, true sizes, small errors."""

import ctypes

import numpy as np
import pytest
from tests.lab.tiny_models import base_gguf, base_model, make_model

import gguf
from tuneline.errors import UserError
from tuneline.gguf.export import QUANTISATIONS, export_gguf, quantize
from tuneline.models import load_tokenizer
from tuneline.serving.engines.llama_cpp.lib import LlamaLibrary, LlamaModel
from tuneline.serving.engines.llama_cpp.scoring import perplexity_and_kl


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    make_model(directory / "hf")
    export_gguf(directory / "hf", directory / "f16.gguf")
    return directory / "f16.gguf"


@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_the_blocks_are_those_of_ggml(kind):
    """The same bytes as ggml's own C code writes (`ggml_quantize_chunk`)."""
    name, _ = QUANTISATIONS[kind]
    number = gguf.GGMLQuantizationType[name]
    rows = np.random.default_rng(1).normal(size=(64, 256)).astype(np.float32)
    ours = gguf.quants.quantize(rows, number)
    theirs = np.zeros_like(ours)
    function = LlamaLibrary().lib.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, wide = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, wide, wide, wide, pointer]
    written = function(
        int(number), rows.ctypes.data, theirs.ctypes.data, 0, rows.shape[0], rows.shape[1], None
    )
    assert written == ours.nbytes
    assert (ours == theirs).mean() > 0.999


@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_a_quantised_file(kind, tiny, tmp_path):
    report = quantize(tiny, tmp_path / "q.gguf", kind)
    reader = gguf.GGUFReader(tmp_path / "q.gguf")
    name, number = QUANTISATIONS[kind]
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.ffn_up.weight"] == name
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert types["blk.1.attn_norm.weight"] == "F32"
    assert reader.fields["general.file_type"].contents() == number
    assert report.types[name] + report.types.get("Q8_0", 0) * (name != "Q8_0") == 16
    assert "F16" not in report.types
    source = gguf.GGUFReader(tiny)
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "llama.rope.freq_base"):
        assert reader.fields[key].contents() == source.fields[key].contents()
    with LlamaModel(LlamaLibrary(), tmp_path / "q.gguf", context=16) as model:
        assert np.isfinite(model.logits([3, 4, 5])).all()


def test_more_bits_err_less(tiny, tmp_path):
    rows = [(list(range(20 + i, 80 + i)), 1) for i in range(4)]
    kl = {}
    for kind in ("q8_0", "q5_1", "q4_0"):
        quantize(tiny, tmp_path / f"{kind}.gguf", kind)
        kl[kind] = perplexity_and_kl(tiny, tmp_path / f"{kind}.gguf", rows).mean_kl
    assert 0 < kl["q8_0"] < kl["q5_1"] < kl["q4_0"]
    assert kl["q8_0"] < 0.01


def test_rows_that_no_block_fits_stay_float16(tmp_path):
    make_model(tmp_path / "hf", intermediate_size=100)
    export_gguf(tmp_path / "hf", tmp_path / "f16.gguf")
    report = quantize(tmp_path / "f16.gguf", tmp_path / "q.gguf", "q8_0")
    assert report.types["F16"] == 2
    tensors = gguf.GGUFReader(report.path).tensors
    kept = {tensor.name for tensor in tensors if tensor.tensor_type.name == "F16"}
    assert kept == {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"}


def test_a_quantised_model_is_not_quantised_again(tiny, tmp_path):
    quantize(tiny, tmp_path / "q.gguf", "q8_0")
    with pytest.raises(UserError, match="Q8_0 already"):
        quantize(tmp_path / "q.gguf", tmp_path / "twice.gguf", "q4_0")
    assert not (tmp_path / "twice.gguf").exists()


@pytest.mark.model
def test_the_base_model_at_8_bit(tmp_path):
    report = quantize(base_gguf(), tmp_path / "q8_0.gguf")
    assert report.bytes < 146e6
    tokenizer = load_tokenizer(base_model().path)
    texts = [
        "The capital of France is Paris, and the river that runs through it is the Seine.",
        "Water boils at 100 degrees Celsius at sea level; on a mountain it boils sooner.",
        "I am sorry to hear that your parcel has not arrived. I have asked the carrier about it.",
    ]
    found = perplexity_and_kl(
        base_gguf(), report.path, [(ids, 1) for ids in tokenizer(texts)["input_ids"]]
    )
    assert 0 < found.mean_kl < 0.02
    assert found.perplexity == pytest.approx(found.reference_perplexity, rel=0.05)
    assert found.same_top_token > 0.85
