"""What a training step allocates, found by running the model's own code on tensors without data.

Under torch's fake tensors an operator makes its result's shape and no numbers. Every storage
that appears is noted, and when it goes again: what an allocator would be asked for, in order.
The largest sum of living storages is the step's peak: kept activations, recomputed ones, logits,
gradients, whatever the architecture.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class StorageTrace(TorchDispatchMode):
    """Notes when storages come and go.

    Attributes:
        events: (number of the storage, bytes) when it is made, (number, -1) when it goes.
    """

    def __init__(self, own: Iterable[Any]) -> None:
        """Begin to note.

        Args:
            own: tensors that were there before and do not count.
        """
        super().__init__()
        self.events: list[tuple[int, int]] = []
        self._phases: list[str] = []
        self._known: dict[int, Any] = {t.untyped_storage()._cdata: None for t in own}
        self._phase = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Name what is made inside."""
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def peak(self) -> Counter[str]:
        """Living bytes by phase at the moment when all of them together were most."""
        sizes = {name: size for name, size in self.events if size >= 0}
        living: Counter[str] = Counter()
        highest: Counter[str] = Counter()
        total = most = 0
        for name, size in self.events:
            change = size if size >= 0 else -sizes[name]
            living[self._phases[name]] += change
            total += change
            if total > most:
                most, highest = total, Counter(living)
        return highest

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator and look at what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: Any) -> None:
        key, name = storage._cdata, len(self._phases)
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self.events.append((name, -1))
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self._phases.append(self._phase)
        self.events.append((name, storage.nbytes()))


def give_fake_storage(model: Any) -> None:
    """Replace tensors of the meta device by fake CPU ones, so that autocast applies; keep ties.

    To be called under `FakeTensorMode`.
    """
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


def stand_in_for_4bit(model: Any) -> None:
    """Let frozen linear layers unpack their weight in every pass, as 4-bit layers do."""
    head = model.get_output_embeddings()
    for module in model.modules():
        frozen = type(module) is torch.nn.Linear and not module.weight.requires_grad
        if frozen and module is not head:
            module.forward = _unpacking(module)


def _unpacking(module: Any) -> Any:
    def forward(features: Any) -> Any:
        narrow = features.to(module.weight.dtype)
        return _UnpackedLinear.apply(narrow, module.weight).to(features.dtype)

    return forward


class _UnpackedLinear(torch.autograd.Function):
    """A linear layer that keeps nothing and makes its weight anew, forward and backward."""

    @staticmethod
    def forward(ctx: Any, features: Any, weight: Any) -> Any:
        """Features of shape (…, in), weight of (out, in)."""
        ctx.shape, ctx.dtype = weight.shape, weight.dtype
        return torch.nn.functional.linear(features, torch.empty(weight.shape, dtype=weight.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient of the features; the weight is frozen."""
        return gradients[0] @ torch.empty(ctx.shape, dtype=ctx.dtype), None
