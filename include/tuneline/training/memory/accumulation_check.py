"""Compare gradients of accumulated micro-batches with those of one large batch.

The reference shares only the model with the trainer: full logits of one padded batch, torch's
own cross-entropy, one backward pass. So it also checks the loss on learned tokens and the
weights of rows. The error of a loss that is normalised per micro-batch is measured as well
(transformers#35203, axolotl#1100), since a check that could not see that fault would prove
nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tuneline.training.loop.rows import IGNORED, EncodedRow, as_batch

ROWS = 4
# Rows beyond this only make the full logits of the reference large.
MAX_TOKENS = 512
# Float32 sums in another order differ by about 1e-6.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Comparison:
    """The differences between accumulation and one large batch.

    Attributes:
        rows: number of rows; each is one micro-batch, or every other one shares a packed one.
        loss: loss of the large batch, nats per token.
        loss_difference: relative difference of the losses.
        gradient_difference: norm of the difference of all gradients over the norm of the
            reference.
        naive_difference: the same for a loss that is normalised per micro-batch.
        tolerance: largest relative difference allowed for loss and gradients.
    """

    rows: int
    loss: float
    loss_difference: float
    gradient_difference: float
    naive_difference: float
    tolerance: float = TOLERANCE


def pick_rows(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """Return the rows whose learned tokens differ most, where wrong normalisation shows."""
    short = [r for r in rows if len(r.ids) <= MAX_TOKENS] or sorted(rows, key=lambda r: len(r.ids))
    ordered = sorted(short, key=lambda r: (r.targets, r.row_id))
    if len(ordered) <= ROWS:
        return ordered
    return ordered[: ROWS // 2] + ordered[-ROWS // 2 :]


def compare(trainer: Any, rows: Sequence[EncodedRow]) -> Comparison:
    """Compare the trainer's accumulated step with one large batch on the same rows.

    The model is changed: the adapter is randomised (a fresh one has no gradient in half of its
    matrices), dropout is switched off, and weights and arithmetic become float32, except 4-bit
    weights.

    Args:
        trainer: a `LabelledTokenTrainer`.
        rows: rows, each of them one micro-batch; packed, every other one shares a sequence.
    """
    import torch

    model = trainer.model
    _widen(torch, model)
    _randomise(torch, model)
    packed = trainer.settings.packing.packed
    parts = [rows[0::2], rows[1::2]] if packed and len(rows) > 1 else [[row] for row in rows]
    batches = [as_batch(torch, part, trainer.pad_id, packed=packed) for part in parts]
    large = trainer._prepare_inputs(as_batch(torch, rows, trainer.pad_id))

    # FlashAttention has no float32: its own check is `packing.check`.
    with _exact(model), trainer.padded_attention():
        model.zero_grad()
        trainer.current_gradient_accumulation_steps = len(batches)
        items = trainer._get_num_items_in_batch(batches, trainer.args.device)
        accumulated = sum(
            float(trainer.training_step(model, dict(batch), items)) for batch in batches
        )
        gradients = _gradients(torch, model)

        model.zero_grad()
        losses = _reference(torch, model, large)
        weight = large["weight"][:, None] * (large["labels"][:, 1:] != IGNORED)
        loss = (losses * weight).sum() / weight.sum()
        loss.backward(retain_graph=True)
        reference = _gradients(torch, model)
        model.zero_grad()
        ((losses * weight).sum(1) / weight.sum(1)).mean().backward()
        naive = _gradients(torch, model)
        model.zero_grad()
    expected = float(loss.detach())
    return Comparison(
        rows=len(rows),
        loss=expected,
        loss_difference=abs(accumulated - expected) / expected,
        gradient_difference=float((gradients - reference).norm() / reference.norm()),
        naive_difference=float((naive - reference).norm() / reference.norm()),
    )


def _reference(torch: Any, model: Any, batch: dict[str, Any]) -> Any:
    """Return the loss of each token of one batch by the plain forward pass; 0 without label."""
    logits = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    # Flat on purpose: torch sums a strided vocabulary axis less exactly (6e-5 off in float32).
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        reduction="none",
        ignore_index=IGNORED,
    )
    return losses.view(labels.shape)


def _widen(torch: Any, model: Any) -> None:
    """Make weights and products float32; packed 4-bit weights are not floats and stay."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32


def _randomise(torch: Any, model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            values = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.data.copy_(values.to(parameter.dtype))


@contextlib.contextmanager
def _exact(model: Any) -> Iterator[None]:
    """Switch off dropout and the rounding of autocast; the training mode stays."""
    import torch

    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    before = [m.p for m in dropouts]
    # accelerate wraps the forward of a trained model in autocast.
    wrapped = model.__dict__.pop("forward", None)
    for module in dropouts:
        module.p = 0.0
    try:
        yield
    finally:
        for module, p in zip(dropouts, before, strict=True):
            module.p = p
        if wrapped is not None:
            model.forward = wrapped


def _gradients(torch: Any, model: Any) -> Any:
    """Return all gradients of the adapter as one float64 vector."""
    return torch.cat(
        [
            p.grad.detach().double().flatten().cpu()
            for p in model.parameters()
            if p.requires_grad and p.grad is not None
        ]
    )
