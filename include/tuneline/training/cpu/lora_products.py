"""Compute LoRA's products in one step of autograd, where PEFT takes eight.

Under autocast PEFT's layer casts the input for the base and again for the adapter, keeps both,
and scales and adds in passes over the whole output. Here the input is cast once (layers that read
the same tensor share the copy), the scale goes into the small matrix, and the product is added
while it is computed. The result is PEFT's, up to rounding. `training.cpu_kernels` switches it.
"""

from __future__ import annotations

import types
import weakref
from typing import Any

import torch
from peft.tuners.lora import Linear


def fuse_lora(model: Any) -> int:
    """Let the plain LoRA layers of a model multiply in one step.

    Layers in 4-bit, DoRA and other variants, and adapters with a bias or with dropout stay as
    they are.

    Args:
        model: model with an adapter, on a CPU.

    Returns:
        Number of layers that were changed.
    """
    shared = _SharedCast()
    changed = 0
    for layer in model.modules():
        if type(layer) is Linear and _is_plain(layer):
            forward = types.MethodType(_forward(layer.forward, shared), layer)
            layer.__dict__["forward"] = forward
            changed += 1
    return changed


def _is_plain(layer: Any) -> bool:
    names = list(layer.lora_A)
    return (
        len(names) == 1
        and not layer.lora_variant
        and type(layer.get_base_layer()) is torch.nn.Linear
        and isinstance(layer.lora_dropout[names[0]], torch.nn.Identity)
        and layer.lora_A[names[0]].bias is None
        and layer.lora_B[names[0]].bias is None
    )


class _SharedCast:
    """Keeps the last input that was cast, for the layers that read the same one."""

    def __init__(self) -> None:
        self._source: Any = lambda: None
        self._key: Any = None
        self._cast: Any = None

    def __call__(self, x: Any, dtype: Any) -> Any:
        if x.dtype == dtype:
            return x
        key = (dtype, x._version)
        if self._source() is not x or self._key != key:
            self._source, self._key = weakref.ref(x), key
            self._cast = x.detach().to(dtype)
        return self._cast


def _forward(plain: Any, shared: _SharedCast) -> Any:
    def forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return plain(x, *args, **kwargs)
        name = self.active_adapters[0]
        base, a, b = self.get_base_layer(), self.lora_A[name].weight, self.lora_B[name].weight
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        multiply: Any = _LoraProduct.apply
        flat = shared(x, dtype).flatten(0, -2)
        product = multiply(x, flat, base.weight, base.bias, a, b, self.scaling[name])
        return product.view(*x.shape[:-1], -1)

    return forward


class _LoraProduct(torch.autograd.Function):
    """x Wᵀ + bias + scale · (x Aᵀ) Bᵀ, with gradients for x, A and B."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        """Multiply.

        Args:
            ctx: context of autograd.
            inputs: x; the same cast and flat, of shape (tokens, in); weight and bias of the base,
                which do not learn; A of shape (r, in); B of shape (out, r); the scale.

        Returns:
            The product, of shape (tokens, out).
        """
        x, flat, weight, bias, a, b, scale = inputs
        inner = flat @ a.to(flat.dtype).T
        bias = None if bias is None else bias.to(flat.dtype)
        out = torch.nn.functional.linear(flat, weight.to(flat.dtype), bias)
        out.addmm_(inner, (b * scale).to(flat.dtype).T)
        ctx.save_for_backward(flat, inner, weight, a, b)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Compute the gradients of x, A and B."""
        flat, inner, weight, a, b = ctx.saved_tensors
        slope = gradients[0]
        reduced = slope @ (b * ctx.scale).to(slope.dtype)
        for_x = None
        if ctx.needs_input_grad[0]:
            for_x = slope @ weight.to(slope.dtype)
            for_x.addmm_(reduced, a.to(slope.dtype))
            for_x = for_x.view(ctx.shape).to(ctx.dtype)
        for_a = (reduced.T @ flat).to(a.dtype)
        for_b = (inner.T @ slope).T.to(b.dtype) * ctx.scale
        return for_x, None, None, None, for_a, for_b, None
