"""The distance of llama.cpp's logits from those of transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tuneline.serving.engines.llama_cpp.lib import LlamaLibrary, LlamaModel


@dataclass(frozen=True)
class Distance:
    """The distance over one sequence.

    Attributes:
        kl: mean KL divergence for each token from transformers to the engine, nats.
        largest: largest absolute difference of two logits.
        same_top: share of tokens with the same best next token.
    """

    kl: float
    largest: float
    same_top: float


def distance(library: LlamaLibrary, path: Path, model: Any, tokens: Sequence[int]) -> Distance:
    """Compare a GGUF file with a model of transformers, which computes in its own type."""
    with LlamaModel(library, path, context=len(tokens)) as engine:
        found = torch.tensor(engine.logits(tokens))
    with torch.no_grad():
        expected = model(torch.tensor([list(tokens)])).logits[0].float()
    ours, theirs = found.log_softmax(-1), expected.log_softmax(-1)
    return Distance(
        kl=float((theirs.exp() * (theirs - ours)).sum(-1).mean()),
        largest=float((expected - found).abs().max()),
        same_top=float((expected.argmax(-1) == found.argmax(-1)).float().mean()),
    )
