"""The attention that keeps packed rows apart, and what it costs.

FlashAttention takes the limits of the rows and computes nothing between them. SDPA and the eager
attention get a mask: exact as well, but the products are computed over the whole pack and then
masked, so that a token costs in proportion to the length of its pack instead of its row's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tuneline.training.loop.compute import Precision

FLASH = "flash_attention_2"


def candidates(model: Any, device: str, precision: Precision) -> list[str]:
    """Return the implementations of attention to pack with, the cheapest first.

    Args:
        model: a model with an adapter.
        device: "cpu" or "cuda".
        precision: arithmetic; FlashAttention has no float32.
    """
    from transformers.utils.import_utils import is_flash_attn_2_available

    own = attention_of(model)
    flash = (
        device == "cuda"
        and precision == "bf16"
        and is_flash_attn_2_available()
        and getattr(model.get_base_model(), "_supports_flash_attn", False)
    )
    return [FLASH, own] if flash and own != FLASH else [own]


def attention_of(model: Any) -> str:
    """Return the name of a model's attention in transformers; empty if the model names none."""
    return str(getattr(model.config, "_attn_implementation", None) or "")


def takes_limits(attention: str) -> bool:
    """Return True if an implementation takes the limits of rows, and needs no mask."""
    return attention.startswith("flash_attention")


def use_attention(model: Any, attention: str) -> None:
    """Let a model with an adapter compute attention with another implementation."""
    if attention != attention_of(model):
        model.get_base_model().set_attn_implementation(attention)


@contextmanager
def attention_for(model: Any, attention: str) -> Iterator[None]:
    """Let a model compute attention with another implementation for a while.

    No backward pass may cross the end of the block: checkpointing would compute it again with
    the other one.
    """
    before = attention_of(model)
    use_attention(model, attention)
    try:
        yield
    finally:
        use_attention(model, before)


def masked_limit(model: Any) -> int:
    """Return the tokens up to which a pack's masked attention costs half of its linear layers.

    For each token and layer, attention over a whole pack multiplies 4 × tokens × width times
    (queries with keys, shares with values), a linear layer twice for each of its weights.

    Args:
        model: a model with an adapter.
    """
    import torch

    base = model.get_base_model()
    head, config = base.get_output_embeddings(), base.config.get_text_config()
    weights = sum(
        module.in_features * module.out_features
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and "lora_" not in name
    )
    layers = int(config.num_hidden_layers)
    size, heads = getattr(config, "head_dim", None), getattr(config, "num_attention_heads", None)
    width = int(heads * size) if heads and size else int(config.hidden_size)
    return max(1, weights // (4 * width * layers))
