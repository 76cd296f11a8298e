"""Whether an engine refused a request because its prompt does not fit the context."""

from __future__ import annotations

import re
from collections.abc import Mapping

# llama.cpp has a type of error for it, OpenAI's API a code.
_KINDS = frozenset({"exceed_context_size_error", "context_length_exceeded"})
# What vLLM, TensorRT-LLM and SGLang say.
_WORDS = re.compile(
    r"maximum (?:context|model) length|should not exceed max_(?:seq_len|num_tokens|input_len)"
    r"|longer than the model's context|context size has been exceeded",
    re.IGNORECASE,
)


def is_overflow(error: Mapping[str, object]) -> bool:
    """Return True if an OpenAI-style `error` object says that the prompt is too long."""
    if _KINDS & {error.get("type"), error.get("code")}:
        return True
    message = error.get("message")
    return isinstance(message, str) and _WORDS.search(message) is not None
