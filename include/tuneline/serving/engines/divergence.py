"""The distance between two variants of one model, from their distributions over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuneline.errors import UserError

# Negative log-likelihood under each of two models, KL divergence (nats) and equal top token, of
# the tokens of one sequence.
Comparison = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]


@dataclass(frozen=True)
class Divergence:
    """The distance of a variant from its reference.

    Attributes:
        tokens: number of scored tokens.
        reference_perplexity: perplexity of the reference.
        perplexity: perplexity of the variant.
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


def compare_logits(
    reference: NDArray[np.float32], other: NDArray[np.float32], targets: NDArray[np.int64]
) -> Comparison:
    """Compare two sets of logits token by token.

    Args:
        reference: logits or log-probabilities of shape (tokens, vocabulary).
        other: the same of the other model.
        targets: the actual next tokens, shape (tokens,).

    Returns:
        Negative log-likelihood under each, KL divergence (nats), equal top token; all (tokens,).
    """
    first, second = log_softmax(reference), log_softmax(other)
    rows = np.arange(len(targets))
    divergence = (np.exp(first) * (first - second)).sum(axis=1)
    return (
        -first[rows, targets],
        -second[rows, targets],
        # Rounding may turn an exact zero into a small negative number.
        np.maximum(divergence, 0.0),
        first.argmax(axis=1) == second.argmax(axis=1),
    )


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log-probabilities (nats) of logits, both of shape (tokens, vocabulary)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def summary(parts: Sequence[Comparison]) -> Divergence:
    """Return the distance over all tokens of several sequences.

    Raises:
        UserError: if there is no token.
    """
    if not parts:
        raise UserError("there is no token to score; give sequences of at least two tokens")
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


def perplexity(
    checkpoint: Path, sequences: Sequence[Sequence[int]], starts: Sequence[int]
) -> Divergence:
    """Return the perplexity of answers, as the distance of a model from itself.

    Args:
        checkpoint: Hugging Face directory.
        sequences: token ids of rows.
        starts: index at which each row's answer starts.
    """
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval().to(device)
    parts = []
    with torch.inference_mode():
        for ids, begin in zip(sequences, starts, strict=True):
            start = max(1, begin)
            if len(ids) <= start:
                continue
            logits = model(torch.tensor([list(ids)], device=device)).logits[0]
            scored = logits[start - 1 : -1].float().cpu().numpy()
            parts.append(compare_logits(scored, scored, np.asarray(ids[start:])))
    return summary(parts)
