"""What the evidence says of packing: how rows were fed to the model, why, and what padding cost."""

from __future__ import annotations

from collections.abc import Mapping

from tuneline.artifacts.training import Packing
from tuneline.evidence import Measurement, measure

UNITS = {
    "packed_share": "share of rows",
    "padding_share": "share of tokens",
    "padding_share_if_padded": "share of tokens",
    "tokens_per_step": "tokens",
    "micro_batches_per_step": "micro-batches",
}


def measured(
    packing: Packing, batches: Mapping[str, float], setting: str, pack_tokens: int | None = None
) -> list[Measurement]:
    """Return the measurements of packing.

    Args:
        packing: the decision.
        batches: what `BatchShape.summary` gives.
        setting: `training.packing`; with `on`, rows that are padded all the same warn.
        pack_tokens: tokens of a pack, at most, where that was found.
    """
    rows = "packed" if packing.packed else "padded"
    if not packing.packed and batches.get("packed_share"):
        rows = "end to end by training.cpu_kernels"
    asked = measure("packing", rows, "", "==", "packed", on_breach="warn")
    found = [
        asked if setting == "on" else measure("packing", rows, ""),
        measure("packing_reason", packing.reason or f"with {packing.attention}", ""),
        *(measure(name, value, UNITS[name]) for name, value in batches.items()),
    ]
    if packing.packed and pack_tokens is not None:
        found.append(measure("pack_tokens", pack_tokens, "tokens"))
    for name in ("loss_difference", "neighbour_difference"):
        value = getattr(packing, name)
        if value is not None:
            found.append(measure(f"packed_{name}", value, "nats"))
    return found


def sentence(packing: Packing) -> str:
    """Return the part of the summary on packing, an empty text if nothing is to be said."""
    if packing.packed:
        return f", rows packed ({packing.attention})"
    return f", rows padded: {packing.reason}" if packing.refused else ""
