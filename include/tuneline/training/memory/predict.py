"""A memory model of training: what one optimiser step needs at its peak.

Weights, adapter and Adam's two moments follow from counted parameters. All else is not
estimated by a formula per architecture: the model's own code runs on tensors without data
(torch's fake tensors, see `step_allocations`), forward, loss and backward, and the living
storages are counted. A validation pass is counted too, since its rows are batched otherwise.
What the allocator holds above that follows from a replay of the same allocations.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tuneline.training.loop.base_weights import LoraSettings, attach_lora, shape_model
from tuneline.training.loop.compute import Precision, autocast
from tuneline.training.loop.rows import IGNORED, EncodedRow, as_batch
from tuneline.training.memory.heap_replay import heap_peak

GIB = 1 << 30

# What a first step leaves besides tensors: scratch space of the matrix products, autograd's
# nodes, code that is loaded late.
STEP_RUNTIME = 60 << 20
# What CUDA's caching allocator reserves above living tensors, as a share; not measured here.
CUDA_RESERVE = 0.1
# An NF4 weight: half a byte, and a scale per 64 values, itself quantised (QLoRA, section 3).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Shape:
    """One micro-batch: rows, padded length, and learned tokens in all."""

    rows: int
    tokens: int
    learned: int


@dataclass(frozen=True)
class MemoryParts:
    """Bytes of one optimiser step at its peak, by what they are for.

    Attributes:
        weights: of the base.
        adapter: its weights.
        optimiser: Adam's two moments.
        activations: what the backbone's forward pass holds.
        logits: of the learned tokens, and their log-probabilities.
        backward: gradients, and activations that are computed again.
        validation: what a validation pass needs beyond a training step.
        allocator: what is held above all that.
    """

    weights: int
    adapter: int
    optimiser: int
    activations: int
    logits: int
    backward: int
    validation: int
    allocator: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())


def predict(
    path: Path,
    lora: LoraSettings,
    rows: Sequence[EncodedRow],
    *,
    precision: Precision,
    device: str = "cpu",
    qlora: bool = False,
    checkpointing: bool = False,
    validation: Sequence[EncodedRow] = (),
) -> MemoryParts:
    """Predict the peak of training on one micro-batch.

    Args:
        path: the base model's directory.
        lora: the adapter.
        rows: the micro-batch.
        precision: of the arithmetic.
        device: "cpu" or "cuda"; on a CPU rows are laid end to end.
        qlora: whether the base is held in NF4.
        checkpointing: whether activations are recomputed in the backward pass.
        validation: the largest batch of a validation pass.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from tuneline.training.cpu.lora_products import fuse_lora
    from tuneline.training.memory.step_allocations import (
        StorageTrace,
        give_fake_storage,
        stand_in_for_4bit,
    )

    model = shape_model(path, precision)
    if qlora:
        # All that is not 4-bit is bf16, the adapter too: so TRL trains QLoRA.
        model.to(torch.bfloat16)
    frozen = _weight_bytes(model, qlora)
    tuned = attach_lora(model, lora).train()
    if qlora:
        tuned.to(torch.bfloat16)
    adapter = sum(p.numel() * p.element_size() for p in tuned.parameters() if p.requires_grad)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        tuned.enable_input_require_grads()
    fake = FakeTensorMode()
    with fake:
        give_fake_storage(tuned)
        if qlora:
            stand_in_for_4bit(model)
        elif device == "cpu":
            fuse_lora(tuned)
    batches = [_Laid.of(model, group, device) for group in (rows, validation) if group]
    with fake:
        own = [*tuned.parameters(), *tuned.buffers()]
        step, passed = StorageTrace(own), StorageTrace(own)
        _replay(tuned, batches[0], precision, step, learn=True)
        if validation:
            tuned.eval()
            _replay(tuned, batches[1], precision, passed, learn=False)
        peak, validated = step.peak(), passed.peak().total()
        held = max(_held(trace.events, trace.peak().total(), device) for trace in (step, passed))
    return MemoryParts(
        weights=frozen,
        adapter=adapter,
        optimiser=2 * adapter,
        activations=peak["activations"],
        logits=peak["logits"],
        backward=peak["backward"],
        validation=max(0, validated - peak.total()),
        allocator=STEP_RUNTIME + held - max(peak.total(), validated),
    )


def _held(events: Sequence[tuple[int, int]], living: int, device: str) -> int:
    """What the allocator comes to hold for storages of which `living` bytes live at most."""
    return heap_peak(events) if device == "cpu" else int((1 + CUDA_RESERVE) * living)


@dataclass(frozen=True)
class _Laid:
    """A batch as the model gets it: without padding where `packed_rows` can, padded elsewhere.

    Attributes:
        layout: of `packed_rows`; None for a padded batch.
        shape: (rows, longest row).
        scored: how many positions have a label.
    """

    layout: Any
    shape: tuple[int, int]
    scored: int

    @classmethod
    def of(cls, model: Any, rows: Sequence[EncodedRow], device: str) -> _Laid:
        import torch

        from tuneline.training.cpu.packed_rows import can_pack, lay_out, use_row_attention

        batch = as_batch(torch, rows, 0)
        layout = None
        if device == "cpu" and can_pack(model):
            use_row_attention(model)
            layout = lay_out(batch["input_ids"], batch["attention_mask"])
        scored = int((batch["labels"][:, 1:] != IGNORED).sum())
        return cls(layout, tuple(batch["input_ids"].shape), scored)

    def hidden(self, body: Any) -> Any:
        """Hidden states of the positions with a label, on fake tensors."""
        import torch

        places = torch.zeros(self.scored, dtype=torch.long)
        if self.layout is not None:
            from tuneline.training.cpu.packed_rows import hidden_states

            shape = self.layout.ids.shape
            ids, positions = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
            return hidden_states(body, replace(self.layout, ids=ids, positions=positions))[places]
        ids = torch.ones(self.shape, dtype=torch.long)
        mask = torch.ones_like(ids)
        states = body(input_ids=ids, attention_mask=mask, use_cache=False)[0][:, :-1]
        return states.reshape(-1, states.shape[-1])[places]


def _replay(tuned: Any, batch: _Laid, precision: Precision, trace: Any, *, learn: bool) -> None:
    """Run a step or a validation pass without data, under a trace."""
    import torch

    from tuneline.training.cpu.packed_rows import forget_masks

    model = tuned.get_base_model()
    forget_masks()
    with trace, nullcontext() if learn else torch.no_grad():
        with autocast(torch, "cpu", precision):
            with trace.phase("activations"):
                hidden = batch.hidden(model.base_model)
            with trace.phase("logits"):
                loss = _loss(model.get_output_embeddings(), hidden, batch.scored)
                del hidden
        if learn:
            with trace.phase("backward"):
                loss.backward()
    forget_masks()


def _loss(head: Any, hidden: Any, scored: int) -> Any:
    import torch

    logits = head(hidden).float()
    target = torch.zeros(scored, dtype=torch.long)
    return torch.nn.functional.cross_entropy(logits, target, reduction="none").sum()


def _weight_bytes(model: Any, qlora: bool) -> int:
    import torch

    sizes = {id(p): p.numel() * p.element_size() for p in model.parameters()}
    if not qlora:
        return sum(sizes.values())
    head = model.get_output_embeddings()
    quantised = {
        id(m.weight): int(m.weight.numel() * NF4_BYTES)
        for m in model.modules()
        if isinstance(m, torch.nn.Linear) and m is not head
    }
    return sum((sizes | quantised).values())


def largest_shape(lengths: Sequence[int], targets: Sequence[int], rows: int) -> Shape:
    """The most demanding micro-batch: the longest rows of the dataset together.

    Args:
        lengths: tokens of each row.
        targets: learned tokens of each row.
        rows: of the micro-batch; a dataset with fewer rows repeats its longest.
    """
    longest = sorted(range(len(lengths)), key=lambda i: -lengths[i])[:rows]
    most = sorted(targets, reverse=True)[:rows]
    learned = sum(most) + most[0] * (rows - len(most))
    return Shape(rows, lengths[longest[0]], learned)
