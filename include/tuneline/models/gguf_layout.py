"""Convert between the weight layouts of Hugging Face and of llama.cpp, for Llama-type models.

GGUF renames every tensor and, for the `llama` architecture, reorders the rows of the
query and key projections: Hugging Face rotates the two halves of a head, llama.cpp
rotates neighbouring pairs. A file without that reordering loads, answers fluently and is
wrong, so the exporter and the importer share one reordering.
Source of the method: `LlamaModel.permute` in llama.cpp's conversion/llama.py; the names are those
of `gguf.get_tensor_name_map`, with which the exporter works (a test compares them).
"""

from __future__ import annotations

import re
from typing import Any

from numpy.typing import NDArray

from tuneline.errors import UserError

Array = NDArray[Any]

TOP_LEVEL = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
PER_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_BLOCK_TO_HF = {gguf: hf for hf, gguf in PER_BLOCK.items()}
_TOP_TO_HF = {gguf: hf for hf, gguf in TOP_LEVEL.items()}
_GGUF_BLOCK = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")


def to_hf_name(name: str) -> str:
    """Return the Hugging Face name of a GGUF tensor.

    Raises:
        UserError: if a Llama-type model has no such tensor.
    """
    if match := _GGUF_BLOCK.fullmatch(name):
        block, module, kind = match.groups()
        if module in _BLOCK_TO_HF:
            return f"model.layers.{block}.{_BLOCK_TO_HF[module]}.{kind}"
    module, _, kind = name.rpartition(".")
    if module in _TOP_TO_HF:
        return f"{_TOP_TO_HF[module]}.{kind}"
    raise UserError(f"GGUF tensor {name!r} does not belong to a Llama-type model")


def interleave_heads(rows: Array, heads: int) -> Array:
    """Reorder a query or key projection from Hugging Face's rotary layout to llama.cpp's.

    Args:
        rows: weight of shape (heads × head_dim, …) or bias of shape (heads × head_dim,).
        heads: number of query heads for q, of key-value heads for k.

    Returns:
        An array of the same shape and type.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def split_heads(rows: Array, heads: int) -> Array:
    """Undo `interleave_heads`."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
