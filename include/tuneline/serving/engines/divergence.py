"""The distance between two variants of one model, from their distributions over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuneline.errors import UserError

# Token ids, and the index of the first one that counts.
Row = tuple[list[int], int]
# Negative log-likelihood under each of two models, KL divergence (nats) and equal top token, of
# the tokens of one sequence.
Comparison = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]


@dataclass(frozen=True)
class Divergence:
    """The distance of a variant from its reference.

    Attributes:
        tokens: number of scored tokens.
        mean_kl: mean KL divergence per token, in nats.
        mean_kl_error: standard error of `mean_kl` over sequences, whose tokens are dependent.
        same_top_token: share of positions with the same most probable token.
    """

    tokens: int
    reference_perplexity: float
    perplexity: float
    mean_kl: float
    mean_kl_error: float
    same_top_token: float


def rows_of(sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Row]:
    """Return the rows with a token that counts: their token ids, and the index of the first one.

    A row's first token never counts, since nothing comes before it.

    Raises:
        UserError: if there is none.
    """
    rows = [(list(map(int, ids)), max(1, at)) for ids, at in zip(sequences, starts, strict=True)]
    rows = [(ids, first) for ids, first in rows if len(ids) > first]
    if not rows:
        raise UserError("there is no token to score; give sequences of at least two tokens")
    return rows


def compare_logits(
    reference: NDArray[np.float32], other: NDArray[np.float32], row: Row
) -> Comparison:
    """Compare logits or log-probabilities of two models, shape (tokens that count, vocabulary).

    Returns:
        Negative log-likelihood under each, KL divergence (nats), equal top token; all (tokens,).
    """
    first, second = map(log_softmax, (reference, other))
    ids, start = row
    targets = np.arange(len(ids) - start), ids[start:]
    divergence = (np.exp(first) * (first - second)).sum(axis=1)
    return (
        -first[targets],
        -second[targets],
        # Rounding may turn an exact zero into a small negative number.
        np.maximum(divergence, 0.0),
        first.argmax(axis=1) == second.argmax(axis=1),
    )


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log-probabilities (nats) of logits, both of shape (tokens, vocabulary)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def compare_folders(reference: Path, other: Path, rows: Sequence[Row]) -> Divergence:
    """Compare the arrays `0.npy`, `1.npy`, … that two models have left for rows."""
    parts = []
    for number, row in enumerate(rows):
        first, second = (np.load(folder / f"{number}.npy") for folder in (reference, other))
        parts.append(compare_logits(first, second, row))
    return summary(parts)


def summary(parts: Sequence[Comparison]) -> Divergence:
    """Return the distance over all tokens of several rows."""
    before, after, divergence, same = (
        np.concatenate(values) for values in zip(*parts, strict=True)
    )
    means = np.array([part[2].mean() for part in parts])
    error = means.std(ddof=1) / len(means) ** 0.5 if len(means) > 1 else float("nan")
    return Divergence(
        tokens=len(before),
        reference_perplexity=float(np.exp(before.mean())),
        perplexity=float(np.exp(after.mean())),
        mean_kl=float(divergence.mean()),
        mean_kl_error=float(error),
        same_top_token=float(same.mean()),
    )


def perplexity(checkpoint: Path, rows: Sequence[Row]) -> Divergence:
    """Return the perplexity of a checkpoint as its distance from itself, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval().to(device)
    parts = []
    with torch.inference_mode():
        for ids, start in rows:
            logits = model(torch.tensor([ids], device=device)).logits[0]
            scored = logits[start - 1 : -1].float().cpu().numpy()
            parts.append(compare_logits(scored, scored, (ids, start)))
    return summary(parts)
