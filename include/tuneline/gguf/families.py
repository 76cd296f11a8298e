"""The architectures that can be exported to GGUF, one entry for each.

An entry says how a configuration of transformers and its weights differ from what llama.cpp
computes for the GGUF architecture of that name. Where llama.cpp has a fixed value and no key, the
configuration must have that value; anything else would load, answer fluently and be wrong.
Sources: llama.cpp's conversion/*.py and src/models/*.cpp; the configuration classes of
transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# Sliding windows: none; on every token alike, so that a context up to the window is computed as
# without one (llama.cpp has no window for these architectures); or on some layers in a fixed turn.
Windows = Literal["none", "cuts_context", "alternating"]


@dataclass(frozen=True)
class Family:
    """An architecture of transformers in GGUF.

    Attributes:
        gguf: name of the architecture in GGUF.
        defaults: values of settings that config.json may leave out, as the configuration class has
            them. A test compares them with transformers.
        activation: the only activation that llama.cpp computes here.
        rotated: projections whose rows llama.cpp reorders, since it rotates neighbouring pairs.
        norm_offset: what transformers adds to the weights of norms, and llama.cpp does not.
        rotary: kinds of rotary positions that llama.cpp computes here.
        partial_rotary: whether a part of each head may stay without positions.
        layered_positions: whether layers with a window have rotary positions of their own.
        windows: what a sliding window means.
        window_turn: for alternating windows, every so manieth layer sees the whole context.
        wide_heads: whether heads × head size may differ from the hidden size.
        fixed: settings for which llama.cpp has no key, with the values that it computes.
        extra_keys: settings beyond the usual ones, with the method of `gguf.GGUFWriter` for each.
        scales_queries: whether attention is scaled by `query_pre_attn_scalar`.
        narrow_scale_layers: number of layers for which llama.cpp takes that scale from the hidden
            size instead of the head size.
    """

    gguf: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    activation: str = "silu"
    rotated: tuple[str, ...] = ()
    norm_offset: float = 0.0
    rotary: tuple[str, ...] = ("default", "linear")
    partial_rotary: bool = False
    layered_positions: bool = False
    windows: Windows = "none"
    window_turn: int = 0
    wide_heads: bool = True
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    extra_keys: Mapping[str, str] = field(default_factory=dict)
    scales_queries: bool = False
    narrow_scale_layers: int = 0


_QUERY_AND_KEY = ("q_proj", "k_proj")
_GELU = "gelu_pytorch_tanh"
_GEMMA_DEFAULTS = {
    "head_dim": 256,
    "hidden_activation": _GELU,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
_NO_BIAS = {"attention_bias": (False, None)}
_CAUSAL = {"use_bidirectional_attention": (False, None)}

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(
        gguf="llama",
        rotated=_QUERY_AND_KEY,
        rotary=("default", "linear", "llama3"),
        defaults={"rms_norm_eps": 1e-6},
    ),
    # GGUF has no Mistral architecture; its models are written as Llama with a window.
    "MistralForCausalLM": Family(
        gguf="llama",
        rotated=_QUERY_AND_KEY,
        windows="cuts_context",
        defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-6, "sliding_window": 4096},
    ),
    "Qwen2ForCausalLM": Family(
        gguf="qwen2",
        windows="cuts_context",
        wide_heads=False,
        defaults={
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
            "use_sliding_window": False,
        },
    ),
    "Qwen3ForCausalLM": Family(
        gguf="qwen3",
        windows="cuts_context",
        fixed=_NO_BIAS,
        defaults={
            "head_dim": 128,
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
            "use_sliding_window": False,
        },
    ),
    "Gemma2ForCausalLM": Family(
        gguf="gemma2",
        activation=_GELU,
        norm_offset=1.0,
        rotary=("default",),
        windows="alternating",
        window_turn=2,
        scales_queries=True,
        narrow_scale_layers=46,
        fixed={**_NO_BIAS, **_CAUSAL, "tie_word_embeddings": (True,)},
        extra_keys={
            "attn_logit_softcapping": "add_attn_logit_softcapping",
            "final_logit_softcapping": "add_final_logit_softcapping",
        },
        defaults={
            **_GEMMA_DEFAULTS,
            "num_key_value_heads": 4,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "Gemma3ForCausalLM": Family(
        gguf="gemma3",
        activation=_GELU,
        norm_offset=1.0,
        layered_positions=True,
        windows="alternating",
        window_turn=6,
        scales_queries=True,
        narrow_scale_layers=62,
        fixed={
            **_NO_BIAS,
            **_CAUSAL,
            "attn_logit_softcapping": (None,),
            "final_logit_softcapping": (None,),
        },
        defaults={
            **_GEMMA_DEFAULTS,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 4,
        },
    ),
    # Phi-3, Phi-3.5 and Phi-4; query, key and value are one projection, gate and up another.
    "Phi3ForCausalLM": Family(
        gguf="phi3",
        rotary=("default", "longrope"),
        partial_rotary=True,
        windows="cuts_context",
        wide_heads=False,
        defaults={"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    ),
}


def supported() -> str:
    """Return the supported architectures as a list in words."""
    return ", ".join(FAMILIES)
