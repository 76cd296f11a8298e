"""Read a model's configuration as llama.cpp will compute it, and refuse what it would not.

It needs config.json alone, so that a base model is refused before its weights are fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.gguf.families import FAMILIES, Family, supported
from tuneline.gguf.positions import Positions, read_positions


@dataclass(frozen=True)
class Settings:
    """A configuration that can be exported.

    Attributes:
        family: its family.
        values: config.json with the family's defaults.
        heads: query heads.
        kv_heads: key-value heads.
        head_dim: size of a head.
        positions: its rotary positions.
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

    Args:
        config: content of config.json.
        where: the model's directory, for an error.

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
