"""A memory model of training: what one optimiser step needs at its peak.

Weights, adapter, gradients and Adam's two moments follow from counted
parameters. Activations are not estimated by a formula per architecture: the
model's own forward pass is run on tensors without data (torch's fake tensors)
and every tensor that autograd keeps for the backward pass is counted once.
The peak lies at the end of the forward pass, where all of them live, together
with the logits and their gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneline.training.base_weights import LoraSettings, attach_lora, shape_model
from tuneline.training.compute import Precision, autocast

GIB = 1 << 30
FLOAT32 = 4

# What an allocator holds above the live tensors, as a share of the activations: freed blocks
# that no later tensor fits, and operators' scratch space. Measured with glibc in one heap on
# four shapes (2 and 8 rows of 234 tokens, with and without dropout, float32): 12 to 23 %.
ALLOCATOR_SHARE = 0.18
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
    """Bytes of one optimiser step at its peak, by what they are for."""

    weights: int
    adapter: int
    optimiser: int
    activations: int
    logits: int
    allocator: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())


def predict(
    path: Path,
    lora: LoraSettings,
    shape: Shape,
    *,
    precision: Precision,
    qlora: bool = False,
    checkpointing: bool = False,
) -> MemoryParts:
    """Predict the peak of training on one micro-batch.

    Args:
        path: the base model's directory.
        lora: the adapter.
        shape: the micro-batch.
        precision: of the arithmetic.
        qlora: whether the base is held in NF4.
        checkpointing: whether activations are recomputed in the backward pass.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = shape_model(path, precision)
    if qlora:
        # All that is not 4-bit is bf16, the adapter too: so TRL trains QLoRA.
        model.to(torch.bfloat16)
    frozen = _weight_bytes(model, qlora)
    tuned = attach_lora(model, lora).train()
    if qlora:
        tuned.to(torch.bfloat16)
    adapter = sum(p.numel() * p.element_size() for p in tuned.parameters() if p.requires_grad)
    with FakeTensorMode():
        _give_fake_storage(tuned)
        kept, logits = _kept_bytes(tuned, shape, precision)
        if checkpointing:
            # One layer at a time is computed again; the rest is kept as its input alone.
            layer = kept // tuned.config.num_hidden_layers
            model.gradient_checkpointing_enable({"use_reentrant": False})
            tuned.enable_input_require_grads()
            kept, logits = _kept_bytes(tuned, shape, precision)
            kept += layer
    activations = kept + logits
    return MemoryParts(
        weights=frozen,
        adapter=adapter,
        # A gradient and Adam's two moments for each parameter that trains.
        optimiser=3 * adapter,
        activations=kept,
        # The log-probabilities are among what autograd keeps; logits and their gradient are not.
        logits=logits,
        allocator=int(ALLOCATOR_SHARE * activations),
    )


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


def _give_fake_storage(model: Any) -> None:
    """Replace tensors of the meta device by fake CPU ones, so that autocast applies; keep ties."""
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                if id(value) not in made:
                    empty = torch.empty(value.shape, dtype=value.dtype)
                    made[id(value)] = torch.nn.Parameter(empty, requires_grad=value.requires_grad)
                module._parameters[name] = made[id(value)]
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype)


def _kept_bytes(tuned: Any, shape: Shape, precision: Precision) -> tuple[int, int]:
    """Bytes that autograd keeps through the backbone and the loss, and those of the logits."""
    import torch

    model = tuned.get_base_model()
    ids = torch.ones(shape.rows, shape.tokens, dtype=torch.long)
    with _counting(tuned) as kept, autocast(torch, "cpu", precision):
        hidden = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
        flat = hidden.reshape(-1, hidden.shape[-1])
        chosen = flat[torch.zeros(max(1, shape.learned), dtype=torch.long)]
        logits = model.get_output_embeddings()(chosen).float()
        target = torch.zeros(logits.shape[0], dtype=torch.long)
        torch.nn.functional.cross_entropy(logits, target).reshape(())
    # The gradient of the logits, and the logits themselves in the precision they came in.
    narrow = 2 if precision == "bf16" else 0
    return sum(kept.values()), logits.numel() * (FLOAT32 + narrow)


@contextmanager
def _counting(model: Any) -> Iterator[dict[int, int]]:
    """Count the storages that autograd keeps, each once, the model's own left out."""
    import torch

    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}
    alive: list[Any] = []

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            # An address may be used again, so the storage must outlive the count.
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def micro_batches(effective_batch: int, world_size: int) -> list[int]:
    """Micro-batches that divide the effective batch exactly, largest first."""
    share = effective_batch // world_size
    if share * world_size != effective_batch:
        return []
    return [size for size in range(share, 0, -1) if share % size == 0]


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
