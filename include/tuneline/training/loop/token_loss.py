"""Loss on the learned tokens alone and its mean over rows: the one path that measures loss.

On a CPU, TRL's fused LM head scores every position. A small model spends most of its time on the
vocabulary, so here the head sees only the positions with a label. The loss is normalised over the
tokens of the whole batch, each with the weight of its row, never per micro-batch
(transformers#35203 is that fault).
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Sequence
from typing import Any

from tuneline.statistics import RowLosses
from tuneline.training.loop.compute import Precision, autocast
from tuneline.training.loop.rows import IGNORED, EncodedRow, as_batch
from tuneline.training.processes.group import ALONE, ProcessGroup

# Rows of one forward pass without gradients, during training and after it. Another number changes
# the padding and so the rounding; a larger one only pads more.
EVAL_BATCH = 16

# The part of a batch that the model gets; weights and marks are for the loss.
MODEL_INPUTS = ("input_ids", "attention_mask", "labels")

# Settings by which some architectures scale or cap their logits; TRL's head knows them all.
_LOGIT_SETTINGS = (
    "final_logit_softcapping logit_scale output_multiplier lm_head_multiplier logits_scaling"
).split()


def add_labelled_head(model: Any, *, cpu_kernels: bool = True, packed: bool = False) -> None:
    """Give a causal model `model(…, labels=…, fused_lm_head=True)` → per-token log-probabilities.

    The call is that of TRL's `add_fused_lm_head`, with the same result. On a CPU the head runs on
    positions with a label only; elsewhere, and for architectures that change their logits,
    TRL's own is used (on a GPU it leaves the other positions out too).

    Args:
        model: a causal language model of transformers, with or without an adapter of PEFT.
        cpu_kernels: True to compute shared prefixes once and LoRA's products in one step, on a
            CPU where the model allows it: the setting `training.cpu_kernels`.
        packed: True if training gives the model packed rows; no prefix is then shared.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and cpu_kernels:
        from tuneline.training.cpu.lora_products import fuse_lora

        fuse_lora(model)
    if not on_cpu or any(getattr(model.config, name, None) for name in _LOGIT_SETTINGS):
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model)
        return
    from tuneline.training.cpu.packed_rows import (
        can_pack,
        hidden_states,
        lay_out,
        use_row_attention,
    )

    plain_forward = model.forward
    packs = cpu_kernels and not packed and can_pack(model)
    if packs:
        use_row_attention(model)

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return plain_forward(*args, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        mask = labels != IGNORED
        if packs:
            layout = lay_out(kwargs["input_ids"], kwargs["attention_mask"])
            scored = hidden_states(self.base_model, layout)[layout.places[:, :-1][mask]]
        else:
            scored = self.base_model(*args, **kwargs).last_hidden_state[:, :-1][mask]
        return _scored(self.get_output_embeddings(), scored, labels, mask)

    model.forward = types.MethodType(forward, model)


def _scored(head: Any, hidden: Any, labels: Any, mask: Any) -> dict[str, Any]:
    import torch

    logits = head(hidden).float()
    found = -torch.nn.functional.cross_entropy(logits, labels[mask], reduction="none")
    # masked_scatter keeps a batch without labels connected to the model.
    log_probs = found.new_zeros(mask.shape).masked_scatter(mask, found)
    return {"log_probs": log_probs, "label_mask": mask}


def weighted_sum(outputs: Any, weight: Any) -> Any:
    """Sum the negative log-likelihoods, each token with the weight of its row.

    Args:
        outputs: `log_probs` of shape (rows, positions), zero where there is no label.
        weight: weights of the rows, of shape (rows,).

    Returns:
        The sum, in nats.
    """
    log_probs = outputs["log_probs"]
    return -(log_probs * weight.to(log_probs)[:, None]).sum()


def target_weight(batches: Sequence[dict[str, Any]]) -> Any:
    """Sum the weights of the learned tokens of several batches, the divisor of their loss."""
    return sum(
        ((batch["labels"][:, 1:] != IGNORED).sum(1) * batch["weight"]).sum() for batch in batches
    )


def row_losses(
    model: Any,
    rows: Sequence[EncodedRow],
    *,
    batch: int = EVAL_BATCH,
    pad_id: int,
    device: str,
    precision: Precision,
    group: ProcessGroup = ALONE,
) -> RowLosses:
    """Measure the loss of rows, without gradients and without dropout.

    Args:
        model: a model with the head of `add_labelled_head`.
        rows: rows, measured in batches of similar length.
        batch: rows per forward pass.
        pad_id: token id of the padding.
        device: device of the model.
        precision: arithmetic of the forward pass.
        group: processes that share the batches; all of them get all losses.

    Returns:
        The losses, in the order of `rows`.
    """
    import torch

    was_training = model.training
    model.eval()
    sums = [0.0] * len(rows)
    try:
        with torch.no_grad(), autocast(torch, device, precision):
            for indices, counts in group.share(list(_length_batches(rows, batch))):
                inputs = as_batch(torch, [rows[i] for i in indices], pad_id)
                inputs = {name: inputs[name].to(device) for name in MODEL_INPUTS}
                outputs = model(**inputs, use_cache=False, fused_lm_head=True)
                if counts:
                    for i, log_probs in zip(indices, outputs["log_probs"], strict=True):
                        sums[i] = -float(log_probs.double().sum())
    finally:
        model.train(was_training)
    return RowLosses(
        # Each row was measured once, so that the sum over processes is exact.
        tuple(group.sum(sums)),
        tuple(row.targets for row in rows),
        tuple(row.weight for row in rows),
    )


def _length_batches(rows: Sequence[EncodedRow], batch: int) -> Iterator[list[int]]:
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), i))
    for start in range(0, len(order), batch):
        yield order[start : start + batch]
