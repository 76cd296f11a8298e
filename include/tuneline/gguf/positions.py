"""Read the rotary positions of a configuration in one form for all versions of transformers.

Source: `modeling_rope_utils.py` of transformers, and the `convert_rope_params_to_dict` of its
configuration classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneline.errors import UserError
from tuneline.gguf.families import Family

Factors = NDArray[np.float32]

_THETA = 10_000.0
# Gemma 3's layers that see the whole context; those with a window keep `_THETA`.
_GLOBAL_THETA = 1_000_000.0


@dataclass(frozen=True)
class Positions:
    """Rotary positions.

    Attributes:
        kind: `default`, `linear`, `llama3` or `longrope`.
        theta: base of the wavelengths.
        dims: values of a head that are rotated.
        factor: divisor of every frequency; 1 for all kinds but `linear`.
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
    """Read the rotary positions of a configuration.

    Args:
        config: config.json with the family's defaults.
        family: its family.
        head_dim: size of an attention head.

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
    return _SCALED[kind](found, stated, config)


def _plain(found: Positions, _: Mapping[str, Any], __: Mapping[str, Any]) -> Positions:
    return found


def _linear(found: Positions, stated: Mapping[str, Any], _: Mapping[str, Any]) -> Positions:
    return _with(found, factor=float(stated["factor"]))


def _llama3(found: Positions, stated: Mapping[str, Any], _: Mapping[str, Any]) -> Positions:
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
    return _with(found, divisors={"rope_freqs.weight": divisors.astype(np.float32)})


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
    return _with(found, original=original, attention_factor=float(attention), divisors=divisors)


def _with(found: Positions, **changes: Any) -> Positions:
    return Positions(**{**vars(found), **changes})


_SCALED = {"default": _plain, "linear": _linear, "llama3": _llama3, "longrope": _longrope}
