"""Decide at the start whether a model can be packed, by the losses of rows of the dataset.

An architecture may carry a state from token to token (Mamba, linear attention), code from a hub
may build its mask itself, and a library may change what it reads from positions. No list of names
keeps up with that, so the model itself is asked, in its own arithmetic: each row of a pack must
have the losses that it has alone, and must keep them when its neighbour is exchanged. The second
measure compares two passes of the same shape, whose rounding is the same: it sees in bf16 what
rounding would hide from the first one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tuneline.artifacts.training import Packing
from tuneline.errors import first_line
from tuneline.machine.memory import is_out_of_memory
from tuneline.training.loop import flat_batch
from tuneline.training.loop.compute import Precision, autocast
from tuneline.training.loop.packed_attention import (
    attention_for,
    attention_of,
    candidates,
    masked_limit,
    takes_limits,
    use_attention,
)
from tuneline.training.loop.rows import EncodedRow, as_batch, tail
from tuneline.training.processes.group import ALONE, ProcessGroup
from tuneline.training.processes.sharding import free_gathered_weights

ROWS = 3
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
    """Losses of packed rows beside those of padded rows, mean differences of a token in nats.

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


def choose_packing(
    model: Any,
    rows: Sequence[EncodedRow],
    *,
    setting: Literal["auto", "on", "off"],
    share: float,
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
        share: tokens of a process in an optimiser step, on average.
        device: "cpu" or "cuda".
        precision: arithmetic of training.
        pad_id: token id of the padding.
        group: processes that train together; all decide alike.

    Returns:
        The decision; its `limit` is that of the attention alone.
    """
    own = attention_of(model)
    if setting == "off":
        return Packing(attention=own, reason="training.packing is off")
    if setting == "auto" and device == "cpu":
        return Packing(attention=own, reason="training.packing: auto packs on a GPU only")
    refused = []
    for attention in candidates(model, device, precision):
        limit = None if takes_limits(attention) else masked_limit(model)
        if setting == "auto" and limit is not None and limit < share:
            refused.append(
                f"{attention}: it masks a whole pack, which is worth its products up to {limit:,} "
                f"tokens, and an optimiser step has {share:,.0f}; training.packing: on packs all "
                "the same, flash-attn needs no mask"
            )
            continue
        found, fault = _attempt(
            model, rows, attention, device=device, precision=precision, pad_id=pad_id
        )
        faults = [other for other in group.gather(fault) if other]
        if found is not None and not faults:
            use_attention(model, attention)
            return Packing(
                packed=True,
                attention=attention,
                padded_attention=own,
                limit=limit,
                loss_difference=found.loss_difference,
                neighbour_difference=found.neighbour_difference,
            )
        refused.append(f"{attention or 'its attention'}: {faults[0]}")
    return Packing(attention=own, refused=True, reason="; ".join(refused))


def _attempt(
    model: Any, rows: Sequence[EncodedRow], attention: str, **options: Any
) -> tuple[Comparison | None, str | None]:
    """Compare with one attention; return what was found, and why it can't be used."""
    try:
        with attention_for(model, attention):
            found = compare(model, rows, **options)
    except _REFUSALS as error:
        if is_out_of_memory(error):
            raise
        return None, f"the model refused packed rows ({type(error).__name__}: {first_line(error)})"
    return found, found.fault


def pick_rows(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """Return the ends of a long, a short and a middling row, in this order."""
    ends = [
        row if len(row.ids) <= MOST_TOKENS else tail(row, MOST_TOKENS / len(row.ids))
        for row in sorted(rows, key=lambda row: (-len(row.ids), row.row_id))
    ]
    return [ends[0], ends[-1], ends[len(ends) // 2]]


def compare(
    model: Any, rows: Sequence[EncodedRow], *, device: str, precision: Precision, pad_id: int
) -> Comparison:
    """Compare losses of packed and padded rows, with the attention that the model has.

    Args:
        model: a model with an adapter; it is not changed.
        rows: rows of the dataset, of which `ROWS` are taken.
        device: "cpu" or "cuda".
        precision: arithmetic of training.
        pad_id: token id of the padding.
    """
    import torch

    taken = pick_rows(rows)
    # The same tokens backwards: as long, and hardly what the next row would expect.
    first = replace(taken[0], ids=taken[0].ids[::-1])
    batch, exchanged = (
        {name: cells.to(device) for name, cells in as_batch(torch, some, pad_id).items()}
        for some in (taken, [first, *taken[1:]])
    )
    limits = takes_limits(attention_of(model))

    def packed(given: Mapping[str, Any]) -> Any:
        laid = flat_batch.flatten(given, variable_lengths=limits)
        return laid.restore(_scores(model, laid.features))

    def seeing(given: Mapping[str, Any]) -> Any:
        laid = flat_batch.flatten(given, variable_lengths=False)
        ids = laid.features["input_ids"]
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        return laid.restore(_scores(model, {"input_ids": ids, "position_ids": positions}))

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(torch, device, precision):
            mask = batch["attention_mask"][:, 1:].bool()
            alone = torch.where(mask, _scores(model, batch), 0.0)
            together = packed(batch)
            return Comparison(
                _differ(alone, together, mask),
                _differ(together[1:], packed(exchanged)[1:], mask[1:]),
                _differ(seeing(batch)[1:], seeing(exchanged)[1:], mask[1:]),
                TOLERANCES[precision],
            )
    finally:
        free_gathered_weights(model)
        model.train(was_training)


def _scores(model: Any, features: Mapping[str, Any]) -> Any:
    """Return the log-probability of each next token, of shape (rows, tokens − 1)."""
    not_for_logits = {"labels", "weight", "rehearsal"}
    given = {name: value for name, value in features.items() if name not in not_for_logits}
    logits = model(**given, use_cache=False).logits[:, :-1].float()
    following = features["input_ids"][:, 1:, None]
    return logits.log_softmax(-1).gather(-1, following).squeeze(-1)


def _differ(one: Any, other: Any, mask: Any) -> float:
    """Return the mean difference of a token, of the row that differs most."""
    return float((((one - other).abs() * mask).sum(1) / mask.sum(1)).max())
