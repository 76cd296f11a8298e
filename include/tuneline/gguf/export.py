"""Export a Hugging Face checkpoint to GGUF with the official `gguf` writer.

Some mistakes in an export go unnoticed and are therefore handled and tested: the row order of
the query and key projections, the rotary base (transformers 5 keeps it in `rope_parameters`),
the 1 that Gemma adds to the weights of its norms, the pre-tokenizer's name, the type of special
tokens, and norms, which must stay float32. `families` lists what differs between architectures. A
test compares the engine's logits and greedy text with transformers in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tuneline.gguf.checkpoint_tensors import StoredTensor, read_header
from tuneline.gguf.file import PlannedTensor, Written, write_tensors
from tuneline.gguf.hyperparameters import write_hyperparameters
from tuneline.gguf.settings import Settings, read_settings
from tuneline.gguf.tensor_names import tensor_names
from tuneline.gguf.tokenizer import model_name, read_tokenizer, write_tokenizer
from tuneline.models.base_model import read_json, read_license, weight_files
from tuneline.models.gguf_import import Array, interleave_heads

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
    settings = read_settings(config, model_dir)
    tokenizer = read_tokenizer(model_dir, settings.integer("vocab_size"))
    tensors = list(_plan(model_dir, settings, DTYPES[dtype]))

    writer = gguf.GGUFWriter(None, settings.family.gguf)
    writer.add_type("model")
    writer.add_name(model_name(str(config.get("_name_or_path") or model_dir.name), tokenizer))
    license_id, _ = read_license(model_dir, config)
    if license_id:
        writer.add_license(license_id)
    write_hyperparameters(writer, settings)
    writer.add_file_type({"f32": 0, "f16": 1, "bf16": 32}[dtype])
    write_tokenizer(writer, tokenizer)
    return write_tensors(writer, tensors, out)


def rotated_heads(settings: Settings) -> dict[str, int]:
    """Return the projections whose rows llama.cpp reorders, with their number of heads."""
    heads = {"q_proj": settings.heads, "k_proj": settings.kv_heads}
    return {name: heads[name] for name in settings.family.rotated}


def _plan(model_dir: Path, settings: Settings, type_name: str) -> Iterator[PlannedTensor]:
    heads, name_of = rotated_heads(settings), tensor_names(settings)
    for name, divisors in settings.positions.divisors.items():
        yield PlannedTensor(name, divisors.shape, "F32", partial(np.asarray, divisors))
    for path in weight_files(model_dir):
        for stored in read_header(path):
            if stored.name.endswith(".rotary_emb.inv_freq"):
                continue  # derived from the configuration; old checkpoints store it
            if stored.name == "lm_head.weight" and settings.values.get("tie_word_embeddings"):
                continue
            module = stored.name.split(".")[-2]
            # Norms and biases are vectors, and llama.cpp wants those in float32.
            kind = type_name if len(stored.shape) == 2 else "F32"
            offset = settings.family.norm_offset if module.endswith("norm") else 0.0
            yield PlannedTensor(
                name_of(stored.name),
                stored.shape,
                kind,
                _values(stored, heads.get(module), offset),
            )


def _values(stored: StoredTensor, heads: int | None, offset: float) -> Callable[[], Array]:
    def read() -> Any:
        values = stored.float32()
        if offset:
            values = values + values.dtype.type(offset)
        return values if heads is None else interleave_heads(values, heads)

    return read
