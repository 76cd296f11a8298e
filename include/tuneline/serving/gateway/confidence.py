"""The confidence of an answer, read from its tokens' log-probabilities.

Two measures are comparable between short and long answers: the mean log-probability per token,
in nats, and the weakest token. Thresholds have to be calibrated on validation rows of the same
model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tuneline.serving.gateway.fallback_config import LowConfidenceConfig


def token_logprobs(choice: Any) -> list[float]:
    """Return the log-probabilities of the tokens of a choice or stream chunk, in nats."""
    logprobs = choice.get("logprobs") if isinstance(choice, dict) else None
    if not isinstance(logprobs, dict):
        return []
    content = logprobs.get("content")
    # The older API has a plain list. Where the prompt is repeated, its first token has None.
    values = [entry.get("logprob") for entry in content or [] if isinstance(entry, dict)] or (
        logprobs.get("token_logprobs") or []
    )
    # JSON has no number for infinity, but `1e999` is read as one, which no ledger takes.
    numbers = (float(value) for value in values if isinstance(value, int | float))
    return [number for number in numbers if math.isfinite(number)]


def mean_logprob(values: Sequence[float]) -> float | None:
    """Return the mean log-probability per token in nats, None without tokens."""
    return sum(values) / len(values) if values else None


def is_low(values: Sequence[float], limits: LowConfidenceConfig, *, window: bool = False) -> bool:
    """Return True if an answer with these log-probabilities should not be trusted.

    Args:
        values: log-probability of each token, in nats.
        limits: the limits.
        window: True if these are the first tokens of a stream.

    Without log-probabilities the confidence is unknown, which is not low: otherwise an upstream
    that does not report them would send every request to the fallback.
    """
    mean = mean_logprob(values)
    if mean is None:
        return False
    least = (limits.stream_min_mean_logprob if window else None) or limits.min_mean_logprob
    if mean < least:
        return True
    return limits.min_token_logprob is not None and min(values) < limits.min_token_logprob
