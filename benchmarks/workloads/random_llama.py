"""A Llama of any shape with random weights, on disk in the form of a published model.

Speed and memory of training depend on the shape of a model, not on what it has learned.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# As published for Llama-3.1-8B.
LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
}
# The layers of any Llama that get LoRA matrices; SmolLM2 is a Llama.
LINEAR_LAYERS = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
# Size of a file of weights, which is held in memory as a whole, bytes.
SHARD_BYTES = 2 << 30
DEVIATION = 0.02


def write_random_llama(
    folder: Path, shape: Mapping[str, Any], tokenizer: Path, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Write configuration, weights in bfloat16 and a tokenizer, file by file.

    Args:
        folder: folder to create.
        shape: settings of transformers' `LlamaConfig`.
        tokenizer: directory of a model whose tokenizer files are copied; rows of random ids need
            only its padding.
        shard_bytes: largest size of a file of weights, in bytes.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    config = LlamaConfig(**shape, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder)
    with torch.device("meta"):
        names = {name: p.shape for name, p in LlamaForCausalLM(config).named_parameters()}
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    shard: dict[str, Any] = {}
    held = total = 0

    def write_shard() -> None:
        name = f"model-{len(set(places.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, size in names.items():
        weight = torch.ones(size, dtype=torch.bfloat16)
        if "norm" not in name:
            weight.normal_(0, DEVIATION, generator=generator)
        if shard and held + weight.nbytes > shard_bytes:
            write_shard()
            held = 0
        shard[name] = weight
        held, total = held + weight.nbytes, total + weight.nbytes
    write_shard()
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def lora_flops(shape: Mapping[str, Any], r: int, row: int, learned: float) -> float:
    """Return the operations of a training step with LoRA for one token, forward and backward.

    A frozen weight takes 4 operations, for the product forward and the gradient of its input; a
    weight that is trained takes 6. Work that checkpointing repeats is not counted, so that the
    share of the card's rate is of useful work alone (PaLM, 2022, appendix B).

    Args:
        shape: shape of the model.
        r: LoRA rank, on all linear layers but the head.
        row: length of a row, in tokens.
        learned: share of the tokens whose logits are computed.
    """
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    keys = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    sides = [(hidden, hidden)] * 2 + [(hidden, keys)] * 2 + [(hidden, inner)] * 3
    frozen = sum(a * b for a, b in sides)
    adapter = sum(r * (a + b) for a, b in sides)
    # Scores and values over half a row on average: 2 × 2 × row / 2 × hidden, three times.
    attention = 6 * row * hidden
    layer = 4 * frozen + 6 * adapter + attention
    return float(shape["num_hidden_layers"] * layer + 4 * learned * hidden * shape["vocab_size"])
