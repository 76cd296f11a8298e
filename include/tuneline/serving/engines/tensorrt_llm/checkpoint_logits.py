"""Perplexity of a checkpoint, by transformers in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tuneline.serving.engines.divergence import Divergence, compare_logits, summary


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
