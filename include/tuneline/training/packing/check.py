"""Decide at the start whether a model can be packed, by the losses of rows of the dataset.

The rows of a packed micro-batch lie end to end in one sequence, and FlashAttention keeps them apart
by their limits. An architecture may carry a state from token to token (Mamba, linear attention),
code from a hub may build its mask itself, and a library may change what it reads from positions. No
list of names keeps up with that, so the model itself is asked, in its own arithmetic: each row of a
pack must have the losses that it has alone, and must keep them when its neighbour is exchanged. The
second measure compares two passes of the same shape, whose rounding is the same: it sees in bf16
what rounding would hide from the first one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tuneline.artifacts.training import Packing
from tuneline.errors import first_line
from tuneline.machine.peak_memory import is_out_of_memory
from tuneline.training.loop.base_weights import attention_for, attention_of, use_attention
from tuneline.training.loop.compute import Precision, autocast
from tuneline.training.loop.rows import IGNORED, EncodedRow, as_batch, tail
from tuneline.training.processes.group import ALONE, ProcessGroup
from tuneline.training.processes.sharding import free_gathered_weights

FLASH = "flash_attention_2"
# Tokens of a row in the check: enough for a neighbour to matter, and logits stay small.
MOST_TOKENS = 64
# Mean difference of a token's loss, nats. In bf16 another order of sums differs by some hundredths.
TOLERANCES: Mapping[Precision, float] = {"fp32": 1e-4, "bf16": 0.1}
# The same where only a neighbour differs. Experts of a mixture may round by what else they get.
NEIGHBOUR_TOLERANCE = 1e-4
# A neighbour must matter so many times more than that where rows do see each other.
POWER = 3.0

# What the code of a model may raise when it does not take packed rows; memory is another matter.
_REFUSALS = (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError)


@dataclass(frozen=True)
class Comparison:
    """Losses of packed rows against those of padded rows, mean differences of a token in nats.

    Attributes:
        loss_difference: packed against padded; of the row that differs most.
        neighbour_difference: with the first row of the pack against another one in its place.
        visible_difference: the same where rows do see each other.
        tolerance: largest loss difference allowed.
    """

    loss_difference: float
    neighbour_difference: float
    visible_difference: float
    tolerance: float

    @property
    def fault(self) -> str | None:
        """Why the model can't be packed; None if it can."""
        # Not a number is a fault too.
        if not self.neighbour_difference <= NEIGHBOUR_TOLERANCE:
            return (
                "a row's loss changes with its neighbour in the sequence, by "
                f"{self.neighbour_difference:.2g} nats a token: its attention does not keep rows "
                "apart"
            )
        if not self.loss_difference <= self.tolerance:
            return (
                f"packed and padded rows differ by {self.loss_difference:.2g} nats a token, at "
                f"most {self.tolerance:g} is rounding"
            )
        if not self.visible_difference >= POWER * NEIGHBOUR_TOLERANCE:
            return (
                "nothing shows whether rows see each other: even where they do, a neighbour "
                f"changes a row's loss by {self.visible_difference:.2g} nats a token only"
            )
        return None


def packing_attention(model: Any, device: str, precision: Precision) -> str | None:
    """Return the attention that packed rows get; None if they can't be packed here.

    Args:
        model: a model with an adapter.
        device: "cpu" or "cuda".
        precision: arithmetic; FlashAttention has no float32.
    """
    from transformers.utils.import_utils import is_flash_attn_2_available

    flash = (
        device == "cuda"
        and precision == "bf16"
        and is_flash_attn_2_available()
        and getattr(model.get_base_model(), "_supports_flash_attn", False)
    )
    return FLASH if flash else None


def choose_packing(
    model: Any,
    rows: Sequence[EncodedRow],
    *,
    setting: Literal["auto", "on", "off"],
    device: str,
    precision: Precision,
    pad_id: int,
    group: ProcessGroup = ALONE,
) -> Packing:
    """Decide how a model gets its rows, and give it the attention for it.

    Args:
        model: a model with an adapter.
        rows: rows of the dataset.
        setting: `training.packing`.
        device: "cpu" or "cuda".
        precision: arithmetic of training.
        pad_id: token id of the padding.
        group: processes that train together; all decide alike.
    """
    own = attention_of(model)
    if setting == "off":
        return Packing(attention=own, reason="training.packing is off")
    attention = packing_attention(model, device, precision)
    if attention is None:
        return Packing(
            attention=own,
            refused=setting == "on",
            reason="packing needs FlashAttention: a GPU, bf16, flash-attn installed and an "
            "architecture that has it",
        )
    comparison, fault = None, None
    try:
        with attention_for(model, attention):
            comparison = compare(model, rows, device=device, precision=precision, pad_id=pad_id)
        fault = comparison.fault
    except _REFUSALS as error:
        if is_out_of_memory(error):
            raise
        fault = f"the model refused packed rows ({type(error).__name__}: {first_line(error)})"
    faults = [other for other in group.gather(fault) if other]
    if comparison is None or faults:
        return Packing(attention=own, refused=True, reason=f"{attention}: {faults[0]}")
    use_attention(model, attention)
    return Packing(
        packed=True,
        attention=attention,
        padded_attention=own,
        loss_difference=comparison.loss_difference,
        neighbour_difference=comparison.neighbour_difference,
    )


def pick_rows(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """Return the ends of a long, a short and a middling row, in this order, learned whole."""
    ends = [
        row if len(row.ids) <= MOST_TOKENS else tail(row, MOST_TOKENS / len(row.ids))
        for row in sorted(rows, key=lambda row: (-len(row.ids), row.row_id))
    ]
    picked = [ends[0], ends[-1], ends[len(ends) // 2]]
    return [replace(row, learned=(True,) * len(row.ids)) for row in picked]


def compare(
    model: Any, rows: Sequence[EncodedRow], *, device: str, precision: Precision, pad_id: int
) -> Comparison:
    """Compare losses of packed and padded rows, with the attention that the model has.

    Args:
        model: a model with an adapter; it is not changed.
        rows: rows of the dataset, of which three are taken.
        device: "cpu" or "cuda".
        precision: arithmetic of training.
        pad_id: token id of the padding.
    """
    import torch

    taken = pick_rows(rows)
    # The same tokens backwards: as long, and hardly what the next row would expect.
    exchanged = [replace(taken[0], ids=taken[0].ids[::-1]), *taken[1:]]

    def padded() -> list[Any]:
        return _scores(model, as_batch(torch, taken, pad_id), taken, device)

    def packed(some: Sequence[EncodedRow]) -> list[Any]:
        return _scores(model, as_batch(torch, some, pad_id, packed=True), some, device)

    def seeing(some: Sequence[EncodedRow]) -> list[Any]:
        batch = as_batch(torch, some, pad_id, packed=True)
        positions = torch.arange(batch["input_ids"].shape[1])[None]
        whole = {name: batch[name] for name in ("input_ids", "labels")}
        return _scores(model, {**whole, "position_ids": positions}, some, device)

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(torch, device, precision):
            together = packed(taken)
            return Comparison(
                _differ(padded(), together),
                _differ(together[1:], packed(exchanged)[1:]),
                _differ(seeing(taken)[1:], seeing(exchanged)[1:]),
                TOLERANCES[precision],
            )
    finally:
        free_gathered_weights(model)
        model.train(was_training)


def _scores(
    model: Any, batch: Mapping[str, Any], rows: Sequence[EncodedRow], device: str
) -> list[Any]:
    """Return the log-probability of each predicted token of a batch, row by row."""
    batch = {n: cells.to(device) if hasattr(cells, "to") else cells for n, cells in batch.items()}
    labels = batch["labels"][:, 1:]
    not_for_logits = {"labels", "weight", "rehearsal"}
    features = {name: cells for name, cells in batch.items() if name not in not_for_logits}
    logits = model(**features, use_cache=False).logits[:, :-1].float()
    scores = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    return list(scores[labels != IGNORED].split([row.targets for row in rows]))


def _differ(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Return the mean difference of a token, of the row that differs most."""
    import torch

    pairs = zip(one, other, strict=True)
    # The largest of torch is NaN where one is.
    return float(torch.stack([(a - b).abs().mean() for a, b in pairs]).max())
