"""OpenAI's protocol and engines' metrics, as far as clients and probes read them.

Only the standard library is imported: a probe runs every few seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# llama.cpp has a type of error for it, OpenAI's API a code.
_KINDS = ("exceed_context_size_error", "context_length_exceeded")
# What vLLM, TensorRT-LLM and SGLang say.
_WORDS = re.compile(
    r"maximum (?:context|model) length|should not exceed max_(?:seq_len|num_tokens|input_len)"
    r"|longer than the model's context|context size has been exceeded",
    re.IGNORECASE,
)


def adapter_fields(adapter: int | str | None) -> dict[str, Any]:
    """Return the fields that choose an adapter: by its place in llama.cpp, its name in vLLM."""
    if adapter is None:
        return {}
    if isinstance(adapter, str):
        return {"model": adapter}
    # llama.cpp scales every adapter that is not named to zero.
    return {"lora": [{"id": adapter, "scale": 1.0}]}


def read_metrics(text: str) -> dict[str, float]:
    """Return each metric by its name, summed over its labels.

    The sum is meant for counters and gauges of one engine. Buckets of histograms are left out,
    since each of them includes the ones before.

    Raises:
        ValueError: if a value is not a number.
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        # A label's value may hold spaces, and braces only where it is quoted.
        series, _, rest = line.rpartition("}") if "{" in line else line.partition(" ")
        name = series.partition("{")[0]
        if not name.endswith("_bucket"):
            # A time may follow the value.
            found[name] = found.get(name, 0.0) + float(rest.split()[0])
    return found


def is_overflow(error: Mapping[str, object]) -> bool:
    """Return True if an OpenAI-style `error` object says that the prompt is too long."""
    if any(error.get(name) in _KINDS for name in ("type", "code")):
        return True
    message = error.get("message")
    return isinstance(message, str) and _WORDS.search(message) is not None
