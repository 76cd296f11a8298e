"""Measure the loss of a checkpoint on learned tokens, row by row, in transformers and float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def checkpoint_losses(
    folder: Path,
    sequences: Sequence[Sequence[int]],
    scored: Sequence[Sequence[bool]],
    *,
    threads: int,
) -> list[float]:
    """Return the loss of a checkpoint on given tokens of each sequence, in nats.

    Sequences are evaluated one at a time, so that nothing is padded. This is the plain forward
    pass of transformers, without the kernels of training, so that it is a second opinion on them.

    Args:
        folder: checkpoint of a causal language model.
        sequences: token ids of rows.
        scored: for each token of each sequence, whether it counts; a first one never does.
        threads: number of threads; more than there are free cores cost a factor of seven.

    Returns:
        The negative log-likelihood of each sequence's scored tokens, summed.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    ).eval()
    losses = []
    with torch.inference_mode():
        for sequence, flags in zip(sequences, scored, strict=True):
            ids = torch.tensor([list(sequence)])
            counted = torch.tensor(list(flags[1:]), dtype=torch.bool)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1][counted]
            targets = ids[0, 1:][counted]
            loss = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
            losses.append(float(loss))
    return losses
