"""The distance between two variants of one model, from their distributions over tokens."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tuneline.errors import UserError

NumberFormat = Literal["float16", "bfloat16"]
# Negative log-likelihood under each of two models, KL divergence (nats) and equal top token, of
# the tokens of one sequence that count.
Comparison = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]


class ScoredRow(NamedTuple):
    """The token ids of a sequence, and the places of those that count.

    The first one never counts, since nothing comes before it.
    """

    ids: list[int]
    places: list[int]

    @classmethod
    def marked(cls, ids: Sequence[int], flags: Sequence[bool]) -> ScoredRow:
        """Return a row whose tokens count where the flag is set."""
        return cls([int(token) for token in ids], [at for at in range(1, len(ids)) if flags[at]])

    @classmethod
    def from_place(cls, ids: Sequence[int], start: int) -> ScoredRow:
        """Return a row whose tokens count from a place on."""
        return cls([int(token) for token in ids], list(range(max(1, start), len(ids))))


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
    mean_kl: float = 0.0
    mean_kl_error: float = 0.0
    same_top_token: float = 1.0


Rows = Sequence[ScoredRow]


def rows_of(sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[ScoredRow]:
    """Return the rows with a token that counts, from its start on.

    Raises:
        UserError: if there is none.
    """
    each = (ScoredRow.from_place(*row) for row in zip(sequences, starts, strict=True))
    rows = [row for row in each if row.places]
    if not rows:
        raise UserError("there is no token to score; give sequences of at least two tokens")
    return rows


def compare_logits(
    reference: NDArray[np.float32], other: NDArray[np.float32], row: ScoredRow
) -> Comparison:
    """Compare logits or log-probabilities of two models, shape (tokens that count, vocabulary)."""
    first, second = map(log_softmax, (reference, other))
    targets = np.arange(len(row.places)), np.asarray(row.ids)[row.places]
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


def compare_variants(
    reference: Path, others: Mapping[str, Path], rows: Rows, evaluate: Callable[[Path, Path], None]
) -> dict[str, Divergence]:
    """Compare variants by the arrays `0.npy`, `1.npy`, … that `evaluate(model, folder)` leaves."""
    with tempfile.TemporaryDirectory(prefix="tuneline-logits-") as scratch:
        first, second = (Path(scratch) / name for name in ("reference", "other"))
        first.mkdir()
        evaluate(reference, first)
        found = {}
        for name, model in others.items():
            other = first if model == reference else second
            if other is second:
                second.mkdir()
                evaluate(model, second)
            parts = []
            for number, row in enumerate(rows):
                file = f"{number}.npy"
                parts.append(compare_logits(np.load(first / file), np.load(other / file), row))
            found[name] = summary(parts)
            shutil.rmtree(second, ignore_errors=True)
        return found


def summary(parts: Sequence[Comparison]) -> Divergence:
    """Return the distance over all tokens of several rows."""
    before, after, divergence, same = map(np.concatenate, zip(*parts, strict=True))
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


def checkpoint_losses(
    folder: Path,
    rows: Rows,
    *,
    threads: int | None = None,
    device: str = "cpu",
    dtype: NumberFormat | Literal["float32"] = "float32",
) -> list[list[float]]:
    """Return the loss of a checkpoint on each token that counts, in nats, for each row.

    This is the plain forward pass of transformers, without the kernels of training, so that it is
    a second opinion on them. Nothing is padded.

    Args:
        threads: CPU threads; more than there are free cores cost a factor of seven.
        dtype: number format of weights and activations.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if threads is not None:
        torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True
    ).eval()
    model.to(device)
    losses = []
    with torch.inference_mode():
        for row in rows:
            ids, places = torch.tensor([row.ids], device=device), torch.tensor(row.places).long()
            logits = model(input_ids=ids, use_cache=False).logits[0, places - 1].double()
            loss = torch.nn.functional.cross_entropy(logits, ids[0, places], reduction="none")
            losses.append(loss.tolist())
    return losses
