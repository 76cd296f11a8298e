"""Gradients of accumulated micro-batches against those of one large batch.

The reference shares nothing with the trainer but the model: full logits of one
padded batch, torch's own cross-entropy, one backward pass. So it also proves
the loss on learned tokens alone and the weights of rows. How far off a loss
that is normalised per micro-batch would be is measured beside it
(transformers#35203, axolotl#1100): a check that could not see that fault
would prove nothing.
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
    """How accumulation compares with one large batch.

    Attributes:
        rows: compared, each a micro-batch of its own.
        loss: of the large batch, nats per token.
        loss_difference: relative.
        gradient_difference: norm of the difference of all gradients over the norm of theirs.
        naive_difference: the same of gradients of a loss normalised per micro-batch.
        tolerance: relative, for the first two.
    """

    rows: int
    loss: float
    loss_difference: float
    gradient_difference: float
    naive_difference: float
    tolerance: float = TOLERANCE


def pick_rows(rows: Sequence[EncodedRow], count: int = ROWS) -> list[EncodedRow]:
    """Rows whose numbers of learned tokens differ most: there wrong normalisation shows."""
    short = [r for r in rows if len(r.ids) <= MAX_TOKENS] or sorted(rows, key=lambda r: len(r.ids))
    ordered = sorted(short, key=lambda r: (r.targets, r.row_id))
    if len(ordered) <= count:
        return ordered
    few = count // 2
    return ordered[:few] + ordered[-(count - few) :]


def compare(trainer: Any, rows: Sequence[EncodedRow], pad_id: int) -> Comparison:
    """Compare the trainer's accumulated step with one large batch on the same rows.

    Changes the model: the adapter is randomised (a fresh one has no gradient in half of its
    matrices), dropout switched off, weights and arithmetic made float32, 4-bit weights alone
    left as they are.

    Args:
        trainer: of `LabelledTokenTrainer` or a subclass.
        rows: one micro-batch each.
        pad_id: token id of the padding.
    """
    import torch

    model = trainer.model
    _widen(torch, model)
    _randomise(torch, model)
    device = trainer.settings.device
    batches = [_to(as_batch(torch, [row], pad_id), device) for row in rows]
    large = _to(as_batch(torch, rows, pad_id), device)

    with _exact(model):
        model.zero_grad()
        trainer.current_gradient_accumulation_steps = len(batches)
        items = trainer._get_num_items_in_batch(batches, torch.device(device))
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


def _to(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _reference(torch: Any, model: Any, batch: dict[str, Any]) -> Any:
    """Loss of each token of one batch, by the plain forward pass; zero without a label."""
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
    """Make weights and products float32; packed 4-bit weights stay, they are no floats."""
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
    """Switch dropout off and autocast's rounding with it; the training mode stays."""
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
    """All gradients of the adapter as one vector, in float64."""
    return torch.cat(
        [
            p.grad.detach().double().flatten().cpu()
            for p in model.parameters()
            if p.requires_grad and p.grad is not None
        ]
    )
