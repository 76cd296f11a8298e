"""What the evidence says of packing: how rows were fed to the model, why, and what padding cost."""

from __future__ import annotations

from collections.abc import Mapping

from tuneline.artifacts.training import Packing
from tuneline.evidence import Measurement, measure

UNITS = {
    "padding_share": "share of tokens",
    "padding_share_if_padded": "share of tokens",
    "tokens_per_step": "tokens",
}


def measured(packing: Packing, batches: Mapping[str, float], setting: str) -> list[Measurement]:
    """Return the measurements of packing.

    Args:
        packing: the decision.
        batches: what `batch_shape` gives.
        setting: `training.packing`; with `on`, rows that are padded all the same warn.
    """
    rows = "packed" if packing.packed else "padded"
    if not packing.packed and batches["padding_share"] < batches["padding_share_if_padded"]:
        rows = "end to end by training.cpu_kernels"
    asked = measure("packing", rows, "", "==", "packed", on_breach="warn")
    found = [
        asked if setting == "on" else measure("packing", rows, ""),
        measure("packing_reason", packing.reason or f"with {packing.attention}", ""),
        *(measure(name, value, UNITS[name]) for name, value in batches.items()),
    ]
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
