"""Measure how likely a model holds each of several values after the same text.

TensorRT-LLM does not tell the probability of text that it is given, so this is measured on the
checkpoint in transformers, for every engine alike, and not on the bytes that ship. The text before
is evaluated once, and its state serves all values: 16 values then cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

# Values of one forward pass; more cost memory and save nothing.
BATCH = 64


@dataclass(frozen=True)
class Choice:
    """Several values that could follow a text; the true one comes first.

    Attributes:
        shared: the token ids that all of them begin with.
        endings: the further token ids of each, at least one.
    """

    shared: list[int]
    endings: list[list[int]]


def make_choice(
    encode: Callable[[Iterable[str]], list[list[int]]], before: str, values: Sequence[str]
) -> Choice:
    """Tokenise values after a text.

    Args:
        encode: the tokenizer, as training used it.
        before: the text.
        values: the values, distinct.
    """
    sequences = encode([before + value for value in values])
    same = takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False))
    # Each keeps a token of its own, also one that is the beginning of another.
    shared = min(sum(1 for _ in same), min(map(len, sequences)) - 1)
    return Choice(sequences[0][:shared], [sequence[shared:] for sequence in sequences])


def choice_losses(
    folder: Path, choices: Sequence[Choice], *, threads: int
) -> Iterator[list[float]]:
    """Yield the losses of the values of each choice, in nats.

    On a GPU the checkpoint is loaded in its own precision, on a CPU in float32.

    Args:
        folder: checkpoint of a causal language model.
        choices: the choices, each with a shared beginning of at least one token.
        threads: number of CPU threads.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    on_gpu = torch.cuda.is_available()
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto" if on_gpu else torch.float32, local_files_only=True
    )
    model = model.to("cuda" if on_gpu else "cpu").eval()
    for choice in choices:
        with torch.inference_mode():
            losses: list[float] = []
            for at in range(0, len(choice.endings), BATCH):
                losses += _losses(model, choice.shared, choice.endings[at : at + BATCH])
        yield losses


def _losses(model: Any, shared: Sequence[int], endings: Sequence[Sequence[int]]) -> list[float]:
    """Return the loss of each ending after the shared tokens."""
    import torch

    device, count, longest = model.device, len(endings), max(map(len, endings))
    begun = model(input_ids=torch.tensor([list(shared)], device=device), use_cache=True)
    state = begun.past_key_values
    state.batch_repeat_interleave(count)
    padded = torch.tensor([[*e, *[0] * (longest - len(e))] for e in endings], device=device)
    real = torch.tensor([[1] * len(e) + [0] * (longest - len(e)) for e in endings], device=device)
    mask = torch.cat([torch.ones(count, len(shared), device=device, dtype=real.dtype), real], 1)
    first = begun.logits[:, -1:].expand(count, -1, -1)
    logits = first
    if longest > 1:
        inner = model(input_ids=padded[:, :-1], attention_mask=mask[:, :-1], past_key_values=state)
        logits = torch.cat([first, inner.logits], dim=1)
    losses = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), padded, reduction="none"
    )
    return [float(loss) for loss in (losses * real).sum(dim=1)]
