"""Lay the rows of a padded batch end to end in one sequence, and put results back in their rows.

What the model gets is what transformers' `DataCollatorWithFlattening` gives: positions that start
again at each row, and for attention with variable lengths the rows' limits. From the positions
transformers makes the mask of every other attention: causal, and block-diagonal over the rows
(`masking_utils.find_packed_sequence_indices`), as long as it gets one sequence, no mask and no
cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneline.training.loop.rows import IGNORED


@dataclass(frozen=True)
class FlatBatch:
    """Rows laid end to end.

    Attributes:
        features: `input_ids`, `position_ids` and `labels` of shape (1, tokens); with variable
            lengths also `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q` and `max_length_k`. The
            first token of each row has no label: the row before it must not predict it.
        places: place of each row's predicted tokens among the tokens that the sequence predicts,
            of shape (rows, longest − 1).
        predicted: True where there is such a token, of the same shape.
    """

    features: dict[str, Any]
    places: Any
    predicted: Any

    def restore(self, values: Any) -> Any:
        """Put values of predicted tokens back in their rows.

        Args:
            values: of shape (1, tokens − 1).

        Returns:
            The values, of shape (rows, longest − 1), with 0 (or False) where a row has no token.
        """
        import torch

        return torch.where(self.predicted, values[0][self.places], torch.zeros_like(values[0, 0]))


def flatten(batch: Mapping[str, Any], *, variable_lengths: bool) -> FlatBatch:
    """Lay the rows of a right-padded batch end to end.

    Args:
        batch: `input_ids`, `labels` and `attention_mask` of shape (rows, longest).
        variable_lengths: True for attention that takes the limits of rows (FlashAttention).

    Returns:
        The sequence.
    """
    import torch

    real = batch["attention_mask"].bool()
    taken = real.flatten().nonzero().squeeze(1)
    labels = batch["labels"].clone()
    labels[:, 0] = IGNORED
    positions = torch.arange(real.shape[1], device=real.device).expand(real.shape)

    def laid(cells: Any) -> Any:
        return cells.reshape(-1)[taken][None]

    features = {
        "input_ids": laid(batch["input_ids"]),
        "position_ids": laid(positions),
        "labels": laid(labels),
    }
    if variable_lengths:
        lengths = real.sum(1, dtype=torch.int32)
        limits = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        longest = int(lengths.max())
        features |= {"cu_seq_lens_q": limits, "cu_seq_lens_k": limits}
        features |= {"max_length_q": longest, "max_length_k": longest}
    # Token n of the sequence is predicted by value n − 1.
    order = real.flatten().cumsum(0).view(real.shape) - 1
    predicted = real[:, 1:]
    places = (order[:, 1:] - 1).clamp(min=0)
    return FlatBatch(features, places, predicted)
