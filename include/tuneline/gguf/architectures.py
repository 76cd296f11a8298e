"""The architectures that can be exported to GGUF, and what llama.cpp computes for each.

An entry says how a configuration of transformers and its weights differ from what llama.cpp
computes for the GGUF architecture of that name. Where llama.cpp has a fixed value and no key, the
configuration must have that value; anything else would load, answer fluently and be wrong.
Reading needs config.json alone, so that a base model is refused before its weights are fetched.
Sources: llama.cpp's conversion/*.py and src/models/*.cpp; the configuration classes of
transformers, its `modeling_rope_utils.py` and `convert_rope_params_to_dict`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tuneline.errors import UserError

# Sliding windows: none; on every token alike, so that a context up to the window is computed as
# without one (llama.cpp has no window for these architectures); or on some layers in a fixed turn.
Windows = Literal["none", "cuts_context", "alternating"]


@dataclass(frozen=True)
class Family:
    """An architecture of transformers in GGUF.

    Attributes:
        defaults: values of settings that config.json may leave out, as the configuration class has
            them. A test compares them with transformers.
        rotated: projections whose rows llama.cpp reorders, since it rotates neighbouring pairs.
        norm_offset: what transformers adds to the weights of norms, and llama.cpp does not.
        rotary: kinds of rotary positions that llama.cpp computes here.
        partial_rotary: whether a part of each head may stay without positions.
        layered_positions: whether layers with a window have other rotary positions.
        window_turn: for alternating windows, every n-th layer sees the whole context.
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
        defaults={**_GEMMA_DEFAULTS, "max_position_embeddings": 131072, "num_key_value_heads": 4},
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


Factors = NDArray[np.float32]

_THETA = 10_000.0
# Gemma 3's layers that see the whole context; those with a window keep `_THETA`.
_GLOBAL_THETA = 1_000_000.0


@dataclass(frozen=True)
class Positions:
    """Rotary positions.

    Attributes:
        dims: values of a head that are rotated.
        factor: divisor of every frequency.
        local_theta: base on layers with a sliding window, where it is another one.
        original: longest context before it was stretched, in tokens; None if it never was.
        attention_factor: factor of cosine and sine.
        divisors: divisors of each frequency by name of their tensor, of shape (dims / 2,).
    """

    kind: str
    theta: float
    dims: int
    factor: float = 1.0
    local_theta: float | None = None
    original: int | None = None
    attention_factor: float = 1.0
    divisors: Mapping[str, Factors] = field(default_factory=dict)


def read_positions(config: Mapping[str, Any], family: Family, head_dim: int) -> Positions:
    """Read the rotary positions of a config.json with the family's defaults.

    Raises:
        UserError: if llama.cpp computes others for this architecture.
    """
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    local_theta = None
    usual = _GLOBAL_THETA if family.layered_positions else _THETA
    theta = float(config.get("rope_theta") or usual)
    if family.layered_positions:
        local = stated.get("sliding_attention") or {}
        stated = stated.get("full_attention") or {
            key: value for key, value in stated.items() if key != "sliding_attention"
        }
        local_theta = float(local.get("rope_theta") or config.get("rope_local_base_freq") or _THETA)
        if local.get("rope_type", "default") != "default":
            raise UserError("scaled rotary positions on layers with a window can't be exported")
    kind = stated.get("rope_type") or stated.get("type") or "default"
    # The name of longrope in the first configurations of Phi-3.
    if kind in ("su", "yarn") and "longrope" in family.rotary:
        kind = "longrope"
    if kind not in family.rotary:
        raise UserError(f"rotary positions of type {kind!r} can't be exported")
    share = stated.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    dims = int(head_dim * float(share))
    if dims != head_dim and not family.partial_rotary:
        raise UserError(f"rotary positions on {share:g} of each head can't be exported")
    found = Positions(kind, float(stated.get("rope_theta") or theta), dims, local_theta=local_theta)
    if kind == "linear":
        return replace(found, factor=float(stated["factor"]))
    if kind == "llama3":
        return _llama3(found, stated)
    return _longrope(found, stated, config) if kind == "longrope" else found


def _llama3(found: Positions, stated: Mapping[str, Any]) -> Positions:
    """Give the divisors of Llama 3.1; source: `_compute_llama3_parameters`."""
    original = float(stated["original_max_position_embeddings"])
    low, high = float(stated["low_freq_factor"]), float(stated["high_freq_factor"])
    factor = float(stated["factor"])
    exponents = np.arange(0, found.dims, 2, dtype=np.float64) / found.dims
    wavelength = 2 * np.pi * found.theta**exponents
    smooth = (original / wavelength - low) / (high - low)
    blended = 1.0 / ((1.0 - smooth) / factor + smooth)
    divisors = np.where(wavelength > original / low, factor, blended)
    divisors = np.where(wavelength < original / high, 1.0, divisors)
    return replace(found, divisors={"rope_freqs.weight": divisors.astype(np.float32)})


def _longrope(found: Positions, stated: Mapping[str, Any], config: Mapping[str, Any]) -> Positions:
    """Give the divisors of short and long contexts; source: `_compute_longrope_parameters`."""
    # transformers prefers the setting of the model, whose default counts too, to that beside it.
    original = int(config["original_max_position_embeddings"])
    factor = float(stated.get("factor") or config["max_position_embeddings"] / original)
    attention = stated.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    divisors = {
        f"rope_factors_{length}.weight": np.asarray(stated[f"{length}_factor"], dtype=np.float32)
        for length in ("long", "short")
    }
    for name, values in divisors.items():
        if values.shape != (found.dims // 2,):
            raise UserError(f"{name} has {values.size} factors where {found.dims // 2} are needed")
    return replace(found, original=original, attention_factor=float(attention), divisors=divisors)


@dataclass(frozen=True)
class Settings:
    """A configuration that can be exported.

    Attributes:
        values: config.json with the family's defaults.
        window: sliding window in tokens; None if every token sees all before it.
    """

    family: Family
    values: Mapping[str, Any]
    heads: int
    kv_heads: int
    head_dim: int
    positions: Positions
    window: int | None

    def integer(self, name: str) -> int:
        """Return a setting that is a whole number."""
        return int(self.values[name])

    @property
    def trained_context(self) -> int:
        """Longest context that the file states, in tokens."""
        longest = self.integer("max_position_embeddings")
        if self.family.windows == "cuts_context" and self.window:
            return min(longest, self.window)
        return longest

    @property
    def faithful_context(self) -> int | None:
        """Context beyond which llama.cpp computes something else; None if there is no such limit.

        One is a window that llama.cpp does not have. The other is longrope: llama.cpp chooses
        between the factors for short and long texts by the size of the context, which it rounds up
        to a multiple of 256, transformers by the length of the text.
        """
        longest = self.trained_context
        if self.positions.original is not None:
            longest = min(longest, self.positions.original // 256 * 256)
        return longest if longest < self.integer("max_position_embeddings") else None


def read_settings(config: Mapping[str, Any], where: Path) -> Settings:
    """Read a configuration.

    Raises:
        UserError: if the architecture is not supported, the weights are quantised, or llama.cpp
            computes a setting otherwise.
    """
    named = (config.get("architectures") or ["none"])[0]
    family = FAMILIES.get(named)
    if family is None:
        raise UserError(
            f"{where}: {named} can't be exported to GGUF here, only {supported()}; "
            "serve it with an engine that reads Hugging Face checkpoints"
        )
    if config.get("quantization_config"):
        raise UserError(f"{where}: the checkpoint is quantised; export the merged, unquantised one")
    values = {**family.defaults, **config}
    try:
        return _settings(family, values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except KeyError as error:
        raise UserError(f"{where}: config.json lacks {error}, which the export needs") from None


def _settings(family: Family, values: Mapping[str, Any]) -> Settings:
    activation = values.get("hidden_activation") or values.get("hidden_act") or family.activation
    if activation != family.activation:
        raise UserError(f"llama.cpp has no {activation} for this architecture")
    for name, allowed in family.fixed.items():
        if values.get(name, allowed[0]) not in allowed:
            raise UserError(f"llama.cpp has no {name} {values[name]!r} for this architecture")
    heads = int(values["num_attention_heads"])
    hidden = int(values["hidden_size"])
    head_dim = int(values.get("head_dim") or hidden // heads)
    if heads * head_dim != hidden and not family.wide_heads:
        raise UserError(
            f"llama.cpp has no heads of size {head_dim} for this architecture, only of "
            f"{hidden // heads} (hidden_size / num_attention_heads)"
        )
    if family.scales_queries:
        _check_query_scale(family, values, head_dim)
    window = values.get("sliding_window") if values.get("use_sliding_window", True) else None
    if family.windows == "alternating":
        _check_layer_types(family, values)
    for name in family.extra_keys:
        if values.get(name) is None:
            raise UserError(f"llama.cpp needs {name} for this architecture")
    return Settings(
        family=family,
        values=values,
        heads=heads,
        kv_heads=int(values.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        positions=read_positions(values, family, head_dim),
        window=int(window) if window and family.windows != "none" else None,
    )


def _check_query_scale(family: Family, values: Mapping[str, Any], head_dim: int) -> None:
    """Refuse a scale of the queries that llama.cpp, which has it built in, would not take."""
    narrow = int(values["num_hidden_layers"]) == family.narrow_scale_layers
    hidden, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
    built_in = hidden // heads if narrow else head_dim
    if float(values["query_pre_attn_scalar"]) != built_in:
        raise UserError(
            f"llama.cpp has no query_pre_attn_scalar {values['query_pre_attn_scalar']} for this "
            f"architecture, only {built_in}"
        )


def _check_layer_types(family: Family, values: Mapping[str, Any]) -> None:
    """Refuse windows on other layers than llama.cpp has them."""
    turn = family.window_turn
    stated = values.get("sliding_window_pattern") or values.get("_sliding_window_pattern") or turn
    layers = range(int(values["num_hidden_layers"]))
    usual = ["full_attention" if (i + 1) % turn == 0 else "sliding_attention" for i in layers]
    types = values.get("layer_types") or (usual if stated == turn else None)
    if types != usual:
        raise UserError(
            f"llama.cpp has full attention on every {turn}th layer of this architecture and a "
            "sliding window on the others; this model has another order"
        )
    if not values.get("sliding_window"):
        raise UserError("llama.cpp needs sliding_window for this architecture")
