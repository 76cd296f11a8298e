"""Export a Hugging Face checkpoint to GGUF with the official `gguf` writer.

Some mistakes in an export go unnoticed and are therefore handled and tested: the row order of
the query and key projections, the rotary base (transformers 5 keeps it in `rope_parameters`),
the pre-tokenizer's name, the type of special tokens, and norms, which must stay float32. A test
compares the engine's logits and greedy text with transformers in float32.
Source of the key names: llama.cpp's convert_hf_to_gguf.py and the GGUF specification.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneline.errors import UserError
from tuneline.gguf.checkpoint_tensors import StoredTensor, read_header
from tuneline.gguf.file import PlannedTensor, Written, write_tensors
from tuneline.gguf.tokenizer import read_tokenizer, write_tokenizer
from tuneline.models.base_model import read_json, weight_files
from tuneline.models.gguf_layout import Array, interleave_heads, to_gguf_name
from tuneline.models.license import read_license

# Hugging Face architecture → GGUF architecture. Mistral is Llama without a sliding window.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
}
DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


def export_gguf(model_dir: Path, out: Path, dtype: str = "f16") -> Written:
    """Export a model directory to one GGUF file, tensor by tensor.

    Args:
        model_dir: folder with config.json, safetensors, tokenizer and chat template.
        out: the file to write; it appears whole or not at all.
        dtype: type of the matrices, `f16`, `bf16` or `f32`; norms and biases are float32.

    Raises:
        UserError: if the architecture, tokenizer, positions or weights can't be exported
            faithfully.
        RetryableError: if the disk is full.
    """
    import gguf

    config = read_json(model_dir / "config.json")
    architecture = gguf_architecture(config, model_dir)
    tokenizer = read_tokenizer(model_dir, int(config["vocab_size"]))
    tensors = list(_plan(model_dir, config, architecture, DTYPES[dtype]))

    writer = gguf.GGUFWriter(None, architecture)
    writer.add_type("model")
    writer.add_name(str(config.get("_name_or_path") or model_dir.name))
    license_id, _ = read_license(model_dir, config)
    if license_id:
        writer.add_license(license_id)
    write_hyperparameters(writer, config)
    writer.add_file_type({"f32": 0, "f16": 1, "bf16": 32}[dtype])
    write_tokenizer(writer, tokenizer)
    return write_tensors(writer, tensors, out)


def gguf_architecture(config: Mapping[str, Any], where: Path) -> str:
    """Return GGUF's architecture for a configuration; refuse one whose export would be wrong.

    Raises:
        UserError: if the architecture or the activation is unknown, the weights are quantised,
            or attention has a sliding window.
    """
    named = (config.get("architectures") or ["none"])[0]
    if named not in ARCHITECTURES:
        raise UserError(
            f"{where}: {named} can't be exported to GGUF here, only {', '.join(ARCHITECTURES)}; "
            "serve it with an engine that reads Hugging Face checkpoints"
        )
    if config.get("quantization_config"):
        raise UserError(f"{where}: the checkpoint is quantised; export the merged, unquantised one")
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: llama.cpp has no {config['hidden_act']} for this architecture")
    window = config.get("sliding_window")
    used = config.get("use_sliding_window", named == "MistralForCausalLM")
    if used and window and window < int(config["max_position_embeddings"]):
        raise UserError(f"{where}: a sliding window of {window} tokens can't be exported to GGUF")
    return ARCHITECTURES[named]


def head_dim(config: Mapping[str, Any]) -> int:
    """Return the size of an attention head."""
    explicit = config.get("head_dim")
    return int(explicit or int(config["hidden_size"]) // int(config["num_attention_heads"]))


def rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return rotary parameters in one form for all versions of transformers."""
    merged = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    merged.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    merged.setdefault("rope_type", merged.get("type", "default"))
    if merged["rope_type"] not in ("default", "linear", "llama3"):
        raise UserError(f"rotary positions of type {merged['rope_type']!r} can't be exported")
    return merged


def write_hyperparameters(writer: Any, config: Mapping[str, Any]) -> None:
    """Add the model's sizes to a `gguf.GGUFWriter`."""
    import gguf

    heads = int(config["num_attention_heads"])
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_rope_dimension_count(head_dim(config))
    positions = rope(config)
    writer.add_rope_freq_base(float(positions["rope_theta"]))
    if positions["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(positions["factor"]))


def permuted_heads(config: Mapping[str, Any], architecture: str) -> dict[str, int]:
    """Return the projections whose rows llama.cpp reorders, with their number of heads."""
    if architecture != "llama":
        return {}
    heads = int(config["num_attention_heads"])
    return {"q_proj": heads, "k_proj": int(config.get("num_key_value_heads") or heads)}


def _plan(
    model_dir: Path, config: Mapping[str, Any], architecture: str, type_name: str
) -> Iterator[PlannedTensor]:
    heads = permuted_heads(config, architecture)
    factors = _llama3_factors(config)
    if factors is not None:
        yield PlannedTensor("rope_freqs.weight", factors.shape, "F32", lambda: factors)
    for path in weight_files(model_dir):
        for stored in read_header(path):
            if stored.name.endswith(".rotary_emb.inv_freq"):
                continue  # derived from the configuration; old checkpoints store it
            if stored.name == "lm_head.weight" and config.get("tie_word_embeddings"):
                continue
            module = stored.name.split(".")[-2]
            # Norms and biases are vectors, and llama.cpp wants those in float32.
            kind = type_name if len(stored.shape) == 2 else "F32"
            yield PlannedTensor(
                to_gguf_name(stored.name), stored.shape, kind, _values(stored, heads.get(module))
            )


def _values(stored: StoredTensor, heads: int | None) -> Any:
    def read() -> Array:
        values = stored.float32()
        return values if heads is None else interleave_heads(values, heads)

    return read


def _llama3_factors(config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """Return the per-frequency divisors of Llama 3.1's scaled rotary positions.

    The shape is (head_dim / 2,).

    Source: `_compute_llama3_parameters` in transformers' modeling_rope_utils.py.
    """
    positions = rope(config)
    if positions["rope_type"] != "llama3":
        return None
    size = head_dim(config)
    original = float(positions["original_max_position_embeddings"])
    low, high = float(positions["low_freq_factor"]), float(positions["high_freq_factor"])
    factor = float(positions["factor"])
    exponents = np.arange(0, size, 2, dtype=np.float64) / size
    wavelength = 2 * np.pi * float(positions["rope_theta"]) ** exponents
    smooth = (original / wavelength - low) / (high - low)
    blended = 1.0 / ((1.0 - smooth) / factor + smooth)
    divisors = np.where(wavelength > original / low, factor, blended)
    return np.where(wavelength < original / high, 1.0, divisors).astype(np.float32)
