"""A tiny random model of each family that can be exported, with its family's kind of tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.lab.tiny_models import make_model

from tuneline.serving.engines.llama_cpp.lib import LlamaLibrary, LlamaModel

LLAMA3_POSITIONS = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
# Sixteen values a head, of which twelve are rotated.
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0 + 0.1 * i for i in range(6)],
    "long_factor": [1.5 + i for i in range(6)],
}
# Windows of 16 tokens, so that short texts reach beyond them, and soft caps that bend the logits.
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "rope_parameters": None}


@dataclass(frozen=True)
class Tiny:
    """An architecture of transformers, the kind of its tokenizer, and settings of its own."""

    architecture: str
    tokenizer: str
    config: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "llama 3": Tiny("Llama", "llama-bpe", {"rope_parameters": LLAMA3_POSITIONS}),
    "smollm": Tiny("Llama", "smollm", {"tie_word_embeddings": True}),
    "mistral": Tiny("Mistral", "mistral", {"sliding_window": 1024}),
    "mistral nemo": Tiny("Mistral", "tekken", {"sliding_window": None, "head_dim": 32}),
    "qwen2": Tiny("Qwen2", "qwen2", {"tie_word_embeddings": True}),
    "qwen3": Tiny("Qwen3", "qwen2", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma 2": Tiny(
        "Gemma2", "gemma", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}
    ),
    # Seven layers: the sixth sees the whole context.
    "gemma 3": Tiny("Gemma3", "gemma", {**GEMMA, "num_hidden_layers": 7}),
    "phi-3": Tiny("Phi3", "phi-3", {"sliding_window": 1024}),
    "phi-4": Tiny("Phi3", "dbrx"),
    "phi-4-mini": Tiny(
        "Phi3",
        "gpt-4o",
        {
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
    ),
}


def make_family(directory: Path, name: str, **config: Any) -> Any:
    """Save a tiny model of a family, with other settings; returns it, in evaluation mode."""
    tiny = FAMILIES[name]
    sizes = {"max_position_embeddings": 2048, **tiny.config, **config}
    return make_model(directory, tiny.architecture, tokenizer=tiny.tokenizer, **sizes)


class Distance(NamedTuple):
    """Mean KL divergence in nats, largest difference of two logits, share of equal top tokens."""

    kl: float
    largest: float
    same_top: float


def distance(library: LlamaLibrary, path: Path, model: Any, tokens: Sequence[int]) -> Distance:
    """Compare a GGUF file with a model of transformers, which computes in its own type."""
    import torch

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
