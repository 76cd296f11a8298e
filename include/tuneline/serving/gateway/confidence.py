"""How sure a model was of its answer, read from token log-probabilities.

The mean log-probability per token in nats, and the weakest token: the two
measures that stay comparable between short and long answers. The threshold has
to be calibrated on validation rows, never taken from another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuneline.serving.gateway.config import LowConfidenceConfig


def token_logprobs(choice: Any) -> list[float]:
    """The log-probabilities of a choice's tokens (whole answer or stream chunk), in nats."""
    logprobs = choice.get("logprobs") if isinstance(choice, dict) else None
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    values = [entry.get("logprob") for entry in content or [] if isinstance(entry, dict)]
    return [float(value) for value in values if isinstance(value, int | float)]


def mean_logprob(values: Sequence[float]) -> float | None:
    """Mean log-probability per token in nats, or None without tokens."""
    return sum(values) / len(values) if values else None


def is_low(values: Sequence[float], limits: LowConfidenceConfig) -> bool:
    """Whether an answer with these token log-probabilities should not be trusted.

    No log-probabilities means unknown, which is not low: an upstream that does not
    report them must not send every request to the fallback.
    """
    mean = mean_logprob(values)
    if mean is None:
        return False
    if mean < limits.min_mean_logprob:
        return True
    return limits.min_token_logprob is not None and min(values) < limits.min_token_logprob
