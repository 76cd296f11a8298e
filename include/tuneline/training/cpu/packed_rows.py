"""A padded batch without its padding, and with every shared beginning computed once.

Rows of a dataset mostly begin alike: a system prompt, the template's own words. In a causal
model the hidden states of a shared beginning are the same in every row, so one copy serves all
of them, forward and backward. The rows of a micro-batch are laid end to end in one sequence,
shared beginnings first; attention goes row by row over the beginning and the row's own tokens.
Losses and gradients are those of the padded batch (up to the order of sums): this leaves out
work, it does not approximate.

On a CPU only: there a loop over rows costs nothing beside the products. On a GPU, TRL's packing
with variable-length attention does the first half of this.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "tuneline_rows"

# Architectures whose attention is plain causal attention, as tested here; others are padded.
ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3", "olmo2", "smollm3"})

# A shared beginning is a segment more for every layer to loop over; it must be worth that.
_LEAST_SAVED = 16


class Segment(NamedTuple):
    """Tokens `start:end` of the sequence, which attend to themselves and to `before:until`."""

    before: int
    until: int
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    """Rows laid end to end.

    Attributes:
        ids: token ids, of shape (1, tokens).
        positions: the position of each in its row, of shape (1, tokens).
        segments: what attends to what.
        places: of shape (rows, longest row): where in the sequence each row's token is.
    """

    ids: Any
    positions: Any
    segments: tuple[Segment, ...]
    places: Any


def lay_out(input_ids: Any, attention_mask: Any) -> Layout:
    """Lay the rows of a right-padded batch end to end.

    Args:
        input_ids: of shape (rows, longest).
        attention_mask: of the same shape, 1 where there is a token.
    """
    lengths = attention_mask.sum(1).tolist()
    rows = [ids[:n] for ids, n in zip(input_ids.tolist(), lengths, strict=True)]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    shared = [_shared(rows[a], rows[b]) for a, b in itertools.pairwise(order)]
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
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
    """Tokens that two rows begin with alike; each keeps at least its last one."""
    most = min(len(one), len(other)) - 1
    return next((i for i in range(most) if one[i] != other[i]), most)


def _groups(shared: Sequence[int], first: int, last: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Split sorted rows `first:last` into groups that share a beginning, to save most tokens.

    Args:
        shared: what each row shares with the next in order.
        first: row to begin with.
        last: row to end before.

    Returns:
        Tokens saved, and (first, last, length of the beginning) of each group.
    """
    if last - first == 1:
        return 0, [(first, last, 0)]
    cut = min(range(first, last - 1), key=lambda i: shared[i])
    whole = shared[cut] * (last - first - 1)
    left, right = _groups(shared, first, cut + 1), _groups(shared, cut + 1, last)
    apart = left[0] + right[0]
    if whole >= max(apart, _LEAST_SAVED):
        return whole, [(first, last, shared[cut])]
    return apart, left[1] + right[1]


def can_pack(model: Any) -> bool:
    """Whether a causal model's attention is the plain one that this module computes."""
    config = model.config
    return (
        next(model.parameters()).device.type == "cpu"
        and config.model_type in ARCHITECTURES
        and not getattr(config, "sliding_window", None)
        and not getattr(config, "attention_dropout", 0)
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    )


def use_row_attention(model: Any) -> None:
    """Let a model's attention read the segments that `hidden_states` passes to it."""
    AttentionInterface.register(ATTENTION, row_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)


def hidden_states(body: Any, layout: Layout) -> Any:
    """Last hidden states of a layout, of shape (tokens, hidden).

    Args:
        body: the model without its head.
        layout: of `lay_out`.
    """
    # A mask of four dimensions is taken as made; segments say what attends to what.
    made = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    outputs = body(
        input_ids=layout.ids,
        position_ids=layout.positions,
        attention_mask=made,
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
    """Attention of transformers' interface: by segments where there are any, else by SDPA.

    Args:
        module: the attention layer.
        query: of shape (1, heads, tokens, size).
        key: of shape (1, key heads, tokens, size).
        value: like `key`.
        attention_mask: not read where there are segments.
        scaling: of the scores.
        segments: of a `Layout`.
        options: of SDPA.
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
        """Mix the values.

        Args:
            ctx: of autograd.
            inputs: query, key and value of shape (heads, tokens, size), key heads may be
                fewer; segments; the scale of the scores.
        """
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
        """Gradients of query, key and value."""
        query, key, value = ctx.saved_tensors
        mixed = gradients[0]
        for_query = torch.empty_like(query)
        # Beginnings gather from all of their rows, so sums are kept in float32.
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
    """A segment's own queries, those that share a key head in one matrix."""
    return query[:, segment.start : segment.end].reshape(len(key), -1, query.shape[-1])


def _seen(key: Any, segment: Segment) -> Any:
    """Keys or values that a segment attends to: the beginning's, then its own."""
    own = key[:, segment.start : segment.end]
    if segment.before == segment.until:
        return own
    return torch.cat([key[:, segment.before : segment.until], own], 1)


def _shares(asked: Any, seen: Any, segment: Segment, scale: float) -> Any:
    """Softmax over what each query may see, in float32."""
    scores = (asked @ seen.mT).float().mul_(scale)
    own, beginning = segment.end - segment.start, segment.until - segment.before
    hidden = _later(own, beginning)
    scores.view(len(scores), -1, *hidden.shape).masked_fill_(hidden, -torch.inf)
    return scores.softmax(-1)


@functools.lru_cache(maxsize=256)
def _later(own: int, beginning: int) -> Any:
    """Which keys come after which queries; every layer asks for the same ones."""
    return torch.ones(own, beginning + own, dtype=torch.bool).triu_(beginning + 1)


def forget_masks() -> None:
    """Drop the masks that are kept: those made without data are of no use to a real step."""
    _later.cache_clear()


def _add(total: Any, segment: Segment, part: Any) -> None:
    beginning = segment.until - segment.before
    total[:, segment.before : segment.until] += part[:, :beginning]
    total[:, segment.start : segment.end] += part[:, beginning:]
