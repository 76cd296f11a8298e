"""Kernels for CPUs: shared prefixes are computed once, and LoRA multiplies in one step.

In a causal model the hidden states of a shared prefix (a system prompt) are the same in every row,
so one copy serves all, forward and backward: rows are laid end to end, shared prefixes first, and
attention goes row by row. Under autocast PEFT's layer casts the input twice, keeps both, and scales
and adds over the whole output; here it is cast once (layers that read the same tensor share it),
and the scaled product is added in one step of autograd. Both are exact up to rounding and the order
of sums. `training.cpu_kernels` switches them.
"""

from __future__ import annotations

import functools
import itertools
import types
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "tuneline_rows"

# Architectures whose attention is plain causal attention, as tested here; others are padded.
ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3", "olmo2", "smollm3"})

# A shared prefix is one more segment for every layer to loop over; it must be worth that.
_LEAST_SAVED = 16


class Segment(NamedTuple):
    """Tokens `start:end` of the sequence, which attend to themselves and to `before:until`."""

    before: int
    until: int
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    """Rows end to end: ids and positions (1, tokens), and each row's places (rows, longest row)."""

    ids: Any
    positions: Any
    segments: tuple[Segment, ...]
    places: Any


def lay_out(input_ids: Any, attention_mask: Any) -> Layout:
    """Lay the rows of a right-padded batch, of shape (rows, longest), end to end."""
    lengths = attention_mask.sum(1).tolist()
    rows = [ids[:n] for ids, n in zip(input_ids.tolist(), lengths, strict=True)]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    shared = [_shared(rows[a], rows[b]) for a, b in itertools.pairwise(order)]
    ids: list[int] = []
    positions: list[int] = []
    segments = []
    places = torch.zeros(input_ids.shape, dtype=torch.long)
    for first, last, length in _groups(shared, 0, len(rows))[1]:
        before = len(ids)
        if length:
            ids += rows[order[first]][:length]
            positions += range(length)
            segments.append(Segment(before, before, before, len(ids)))
        until = len(ids)
        for row in order[first:last]:
            start = len(ids)
            ids += rows[row][length:]
            positions += range(length, len(rows[row]))
            segments.append(Segment(before, until, start, len(ids)))
            places[row, :length] = torch.arange(before, until)
            places[row, length : len(rows[row])] = torch.arange(start, len(ids))
    return Layout(torch.tensor([ids]), torch.tensor([positions]), tuple(segments), places)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens of the prefix that two rows share; each keeps at least its last token."""
    most = min(len(one), len(other)) - 1
    return next((i for i in range(most) if one[i] != other[i]), most)


def _groups(shared: Sequence[int], first: int, last: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Split sorted rows `first:last` into groups that share a prefix, to save most tokens."""
    if last - first == 1:
        return 0, [(first, last, 0)]
    cut = min(range(first, last - 1), key=lambda i: shared[i])
    whole = shared[cut] * (last - first - 1)
    left, right = _groups(shared, first, cut + 1), _groups(shared, cut + 1, last)
    apart = left[0] + right[0]
    if whole >= max(apart, _LEAST_SAVED):
        return whole, [(first, last, shared[cut])]
    return apart, left[1] + right[1]


def can_share_prefixes(model: Any) -> bool:
    """Return True if a model's attention is the plain causal one that this module computes."""
    config = model.config
    return (
        next(model.parameters()).device.type == "cpu"
        and config.model_type in ARCHITECTURES
        and not getattr(config, "sliding_window", None)
        and not getattr(config, "attention_dropout", 0)
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    )


def shares_prefixes(model: Any) -> bool:
    """Return True if a model was given the attention of this module."""
    return bool(model.config._attn_implementation == ATTENTION)


def use_row_attention(model: Any) -> None:
    """Let a model's attention read the segments that `hidden_states` passes to it."""
    AttentionInterface.register(ATTENTION, row_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)


def hidden_states(body: Any, layout: Layout) -> Any:
    """Compute the last hidden states of a layout, of shape (tokens, hidden)."""
    outputs = body(
        input_ids=layout.ids,
        position_ids=layout.positions,
        # transformers takes a mask of four dimensions as it is; the segments replace it.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
        use_cache=False,
        segments=layout.segments,
    )
    return outputs.last_hidden_state[0]


def row_attention(  # noqa: PLR0917 - transformers' interface
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    segments: tuple[Segment, ...] | None = None,
    **options: Any,
) -> tuple[Any, None]:
    """Compute attention for transformers: by segments where there are any, else by SDPA.

    Queries have the shape (1, heads, tokens, size), keys and values (1, key heads, tokens, size).
    The interface wants None for the weights.
    """
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    value = value.to(query.dtype)
    attend: Any = _RowAttention.apply
    mixed = attend(query[0], key[0].to(query.dtype), value[0], segments, scale)
    return mixed.transpose(0, 1)[None], None


class _RowAttention(torch.autograd.Function):
    """Softmax attention within segments; the backward pass computes the shares again.

    SDPA's kernel for CPUs is made for long sequences: on rows of 100 to 200 tokens in bf16 its
    backward pass takes three times as long as plain products.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        """Mix the values."""
        query, key, value, segments, scale = inputs
        ctx.save_for_backward(query, key, value)
        ctx.segments, ctx.scale = segments, scale
        mixed = torch.empty_like(query)
        for segment in segments:
            shares = _shares(_of(query, key, segment), _seen(key, segment), segment, scale)
            found = shares.to(value.dtype) @ _seen(value, segment)
            mixed[:, segment.start : segment.end] = found.reshape(len(query), -1, query.shape[-1])
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Compute the gradients of query, key and value."""
        query, key, value = ctx.saved_tensors
        mixed = gradients[0]
        for_query = torch.empty_like(query)
        # A prefix gathers gradients from all of its rows, so sums are kept in float32.
        for_key = torch.zeros_like(key, dtype=torch.float32)
        for_value = torch.zeros_like(value, dtype=torch.float32)
        for segment in ctx.segments:
            asked, seen = _of(query, key, segment), _seen(key, segment)
            shares = _shares(asked, seen, segment, ctx.scale)
            given = _of(mixed, key, segment)
            slopes = (given @ _seen(value, segment).mT).float()
            slopes = shares * (slopes - (slopes * shares).sum(-1, keepdim=True))
            slopes = (slopes * ctx.scale).to(query.dtype)
            for_query[:, segment.start : segment.end] = (slopes @ seen).reshape(
                len(query), -1, query.shape[-1]
            )
            _add(for_key, segment, slopes.mT @ asked)
            _add(for_value, segment, shares.to(value.dtype).mT @ given)
        return for_query, for_key.to(key.dtype), for_value.to(value.dtype), None, None


def _of(query: Any, key: Any, segment: Segment) -> Any:
    """Return a segment's own queries, those that share a key head in one matrix."""
    return query[:, segment.start : segment.end].reshape(len(key), -1, query.shape[-1])


def _seen(key: Any, segment: Segment) -> Any:
    """Return the keys or values that a segment attends to: those of the prefix, then its own."""
    own = key[:, segment.start : segment.end]
    if segment.before == segment.until:
        return own
    return torch.cat([key[:, segment.before : segment.until], own], 1)


def _shares(asked: Any, seen: Any, segment: Segment, scale: float) -> Any:
    """Compute the softmax over the keys that each query may see, in float32."""
    scores = (asked @ seen.mT).float().mul_(scale)
    own, prefix = segment.end - segment.start, segment.until - segment.before
    hidden = _later(own, prefix)
    scores.view(len(scores), -1, *hidden.shape).masked_fill_(hidden, -torch.inf)
    return scores.softmax(-1)


@functools.lru_cache(maxsize=256)
def _later(own: int, prefix: int) -> Any:
    """Return the mask of keys that come after a query; every layer asks for the same ones."""
    return torch.ones(own, prefix + own, dtype=torch.bool).triu_(prefix + 1)


def _add(total: Any, segment: Segment, part: Any) -> None:
    prefix = segment.until - segment.before
    total[:, segment.before : segment.until] += part[:, :prefix]
    total[:, segment.start : segment.end] += part[:, prefix:]


def fuse_lora(model: Any) -> int:
    """Let the plain LoRA layers of a model on a CPU multiply in one step; return their number.

    Layers in 4-bit, DoRA and other variants, and adapters with a bias or with dropout stay as they
    are.
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
        """Multiply."""
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
