"""Write a model's settings as the keys of a GGUF file.

Source of the names: the GGUF specification and llama.cpp's conversion/*.py.
"""

from __future__ import annotations

from typing import Any

from tuneline.gguf.positions import Positions
from tuneline.gguf.settings import Settings


def write_hyperparameters(writer: Any, settings: Settings) -> None:
    """Add the model's settings to a `gguf.GGUFWriter`."""
    writer.add_context_length(settings.trained_context)
    writer.add_embedding_length(settings.integer("hidden_size"))
    writer.add_block_count(settings.integer("num_hidden_layers"))
    writer.add_feed_forward_length(settings.integer("intermediate_size"))
    writer.add_head_count(settings.heads)
    writer.add_head_count_kv(settings.kv_heads)
    writer.add_key_length(settings.head_dim)
    writer.add_value_length(settings.head_dim)
    writer.add_layer_norm_rms_eps(float(settings.values["rms_norm_eps"]))
    writer.add_vocab_size(settings.integer("vocab_size"))
    for name, method in settings.family.extra_keys.items():
        getattr(writer, method)(float(settings.values[name]))
    if settings.family.windows == "alternating":
        writer.add_sliding_window(settings.window)
    _write_positions(writer, settings.positions)


def _write_positions(writer: Any, positions: Positions) -> None:
    import gguf

    writer.add_rope_dimension_count(positions.dims)
    writer.add_rope_freq_base(positions.theta)
    if positions.local_theta is not None:
        writer.add_rope_freq_base_swa(positions.local_theta)
    if positions.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(positions.factor)
    if positions.original is not None:
        writer.add_rope_scaling_orig_ctx_len(positions.original)
        writer.add_rope_scaling_attn_factors(positions.attention_factor)
