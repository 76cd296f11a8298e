"""Export a Hugging Face checkpoint to GGUF with the official `gguf` writer.

What goes wrong in silence here, and is therefore handled and tested: the row order of the
query and key projections, the rotary base (transformers 5 keeps it in `rope_parameters`),
the pre-tokenizer's name, the type of special tokens, norms that must stay float32. A test
compares the engine's logits and greedy text with transformers in float32.
Source of the key names: llama.cpp's convert_hf_to_gguf.py and the GGUF specification.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from tuneline.store import sha256_file

# Hugging Face architecture → GGUF architecture. Mistral is Llama without a sliding window.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
}
DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        path: The GGUF file.
        sha256: Of the file.
        bytes: Of the file.
        architecture: GGUF's name of it.
        dtype: Of the matrices; norms and biases are always float32.
        tensors: How many.
        parameters: How many values, tied weights counted once.
        pre_tokenizer: llama.cpp's name of it.
        rounded_values: Values that the type could not hold exactly; 0 means lossless.
        max_rounding: Largest absolute change of a value.
        seconds: Wall-clock time.
    """

    path: Path
    sha256: str
    bytes: int
    architecture: str
    dtype: str
    tensors: int
    parameters: int
    pre_tokenizer: str
    rounded_values: int
    max_rounding: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {**asdict(self), "path": str(self.path)}


def export_gguf(model_dir: Path, out: Path, dtype: str = "f16") -> ExportReport:
    """Export a model directory to one GGUF file, tensor by tensor.

    Args:
        model_dir: config.json, safetensors, tokenizer and chat template.
        out: The file to write; it appears whole or not at all.
        dtype: `f16`, `bf16` or `f32`.

    Raises:
        UserError: The architecture, tokenizer, positions or weights can't be exported
            faithfully; the sentence says which.
        RetryableError: The disk is full.
    """
    import gguf

    started = time.monotonic()
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: use one of {', '.join(DTYPES)}")
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
    written = write_tensors(writer, tensors, out)
    return report_on(
        out, tensors, written, started, architecture, dtype=dtype, pre_tokenizer=tokenizer.pre
    )


def report_on(
    out: Path,
    tensors: Sequence[PlannedTensor],
    written: Written,
    started: float,
    architecture: str,
    *,
    dtype: str,
    pre_tokenizer: str = "",
) -> ExportReport:
    """The report on a file that was just written.

    Args:
        out: The file.
        tensors: What it holds.
        written: What `write_tensors` found.
        started: `time.monotonic()` when the export began.
        architecture: GGUF's name of it.
        dtype: Of the matrices.
        pre_tokenizer: llama.cpp's name of it; an adapter has none.
    """
    return ExportReport(
        path=out,
        sha256=sha256_file(out),
        bytes=out.stat().st_size,
        architecture=architecture,
        dtype=dtype,
        tensors=len(tensors),
        parameters=sum(tensor.elements for tensor in tensors),
        pre_tokenizer=pre_tokenizer,
        rounded_values=written.inexact,
        max_rounding=written.max_error,
        seconds=time.monotonic() - started,
    )


def gguf_architecture(config: Mapping[str, Any], where: Path) -> str:
    """GGUF's architecture for a configuration, refused where the export would be wrong.

    Raises:
        UserError: Unknown architecture, a sliding window, other activations, quantised weights.
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
    """Size of an attention head."""
    explicit = config.get("head_dim")
    return int(explicit or int(config["hidden_size"]) // int(config["num_attention_heads"]))


def rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters in one form, whichever version of transformers wrote them."""
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
    """Projections whose rows llama.cpp reorders, with their number of heads."""
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
    """Per-frequency divisors of Llama 3.1's scaled rotary positions, shape (head_dim / 2,).

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
