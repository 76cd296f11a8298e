"""A Llama of any shape with random weights, on disk in the form of a published model.

Speed and memory of training depend on the shape of a model, not on what it has learned.
"""

from __future__ import annotations

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


def write_random_llama(folder: Path, shape: Mapping[str, Any], tokenizer: Path) -> Path:
    """Write configuration, weights in bfloat16 and a tokenizer.

    Args:
        shape: settings of transformers' `LlamaConfig`.
        tokenizer: directory of a model whose tokenizer files are copied; rows of random ids need
            only its padding.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder
