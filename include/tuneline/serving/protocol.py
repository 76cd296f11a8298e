"""OpenAI's answers, streams and errors, and engines' metrics, read in one place.

Only the standard library is imported: a probe runs every few seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

DONE = b"[DONE]"
# Far more than a token with twenty alternatives, or the arguments of a tool in one piece.
LONGEST_EVENT = 1_000_000
_WRITTEN = ("content", "refusal", "text")
# More than any request has; a ledger holds no number beyond 2**63, and a negative one would give a
# budget back.
_MOST_TOKENS = 2**53
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


class SseParser:
    """Splits a byte stream into the `data` of its events, independent of its chunks.

    Comments (keep-alives) and fields other than `data` are dropped.
    """

    def __init__(self) -> None:
        # The pieces of a line that has not ended, and the lines of an event that has not.
        self._pieces: list[bytes] = []
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events that a chunk completes, each as its data lines joined by newlines.

        Raises:
            ValueError: if an event is longer than `LONGEST_EVENT`.
        """
        events = []
        first, *others = chunk.split(b"\n")
        self._take(first)
        for piece in others:
            line = b"".join(self._pieces).removesuffix(b"\r")
            self._pieces.clear()
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                self._data.clear()
                self._size = 0
            self._take(piece)
        return events

    def _take(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece) + 1
        if self._size > LONGEST_EVENT:
            raise ValueError(f"an event has more than {LONGEST_EVENT:,} bytes")


def event(data: bytes) -> bytes:
    """Return an event as it is sent."""
    return b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"


@dataclass(frozen=True)
class Usage:
    """Token counts that an engine reported; the cached ones are of the prompt."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


def reported_usage(payload: Mapping[str, Any]) -> Usage | None:
    """Return the usage of a whole answer or a stream's usage chunk.

    Returns:
        None if it is not reported, or not by whole numbers from 0 to 2^53.
    """
    usage = payload.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if not _is_count(prompt) or not _is_count(completion):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(prompt, completion, cached if _is_count(cached) else 0)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MOST_TOKENS


def written_text(choice: Mapping[str, Any]) -> str:
    """Return the text of a choice: reasoning, content, refusal, tool calls, or a plain text."""
    message = choice.get("message") or choice.get("delta") or choice
    if not isinstance(message, dict):
        return ""
    # Some engines send their reasoning under both names.
    parts = [message.get("reasoning_content") or message.get("reasoning")]
    parts += [message.get(name) for name in _WRITTEN]
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            parts += [function.get("name"), function.get("arguments")]
    return "".join(part for part in parts if isinstance(part, str))


def choices_of(payload: Any) -> list[dict[str, Any]]:
    """Return the choices of an answer or chunk; empty if there are none."""
    choices = payload.get("choices") if isinstance(payload, dict) else None
    return [choice for choice in choices or [] if isinstance(choice, dict)]


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
