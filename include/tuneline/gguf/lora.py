"""Export a PEFT LoRA adapter to a GGUF adapter that llama.cpp loads beside its base.

Source: llama.cpp's convert_lora_to_gguf.py. The rows of `lora_B` of the query and key
projections are reordered like the weights to which they are added; otherwise the adapter loads
and changes the wrong rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.gguf.checkpoint_tensors import StoredTensor, read_header
from tuneline.gguf.export import rotated_heads
from tuneline.gguf.file import PlannedTensor, Written, write_tensors
from tuneline.gguf.settings import read_settings
from tuneline.gguf.tensor_names import tensor_names
from tuneline.models.base_model import read_json
from tuneline.models.gguf_import import Array, interleave_heads

_LORA_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def export_lora_gguf(adapter_dir: Path, base_dir: Path, out: Path) -> Written:
    """Export an adapter that `train` wrote; DoRA is out of llama.cpp's reach.

    Args:
        adapter_dir: folder with adapter_config.json and adapter_model.safetensors.
        base_dir: the base model's folder; its config.json is read.
        out: the file to write; its values are float32, since an adapter is small.

    Raises:
        UserError: if it is on another layer than an attention or MLP projection.
    """
    import gguf

    settings = read_json(adapter_dir / "adapter_config.json")
    base = read_settings(read_json(base_dir / "config.json"), base_dir)
    heads, name_of = rotated_heads(base), tensor_names(base)
    tensors = [
        _planned(stored, heads, name_of, adapter_dir)
        for stored in read_header(adapter_dir / "adapter_model.safetensors")
    ]

    writer = gguf.GGUFWriter(None, base.family.gguf)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", effective_alpha(settings))
    return write_tensors(writer, tensors, out)


def effective_alpha(settings: Mapping[str, Any]) -> float:
    """Return the alpha that gives PEFT's scale when llama.cpp divides it by the rank.

    PEFT scales by alpha / r, or by alpha / √r for rank-stabilised LoRA (arXiv:2312.03732).
    """
    alpha, rank = float(settings["lora_alpha"]), int(settings["r"])
    return float(alpha * rank**0.5) if settings.get("use_rslora") else alpha


def _planned(
    stored: StoredTensor, heads: Mapping[str, int], name_of: Callable[[str], str], where: Path
) -> PlannedTensor:
    match = _LORA_NAME.fullmatch(stored.name)
    base = name_of(f"{match.group(1)}.weight") if match else ""
    if match is None or not base.startswith("blk."):
        raise UserError(
            f"{where}: {stored.name} is not a LoRA of an attention or MLP projection; merge the "
            "adapter into its base and export that"
        )
    module, side = match.groups()
    count = heads.get(module.rsplit(".", 1)[-1]) if side == "B" else None
    name = f"{base}.lora_{side.lower()}"

    def values() -> Array:
        rows = stored.float32()
        return rows if count is None else interleave_heads(rows, count)

    return PlannedTensor(name, stored.shape, "F32", values)
