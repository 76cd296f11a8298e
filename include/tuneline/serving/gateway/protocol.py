"""OpenAI's answers and streams, as far as a gateway has to read them.

orjson refuses texts that Python's own reader takes, such as lone surrogates, which an engine sends
when it cuts an answer inside a character. What it refuses is tried again by the standard library.
One difference stays: integers beyond 64 bits become floats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import orjson

DONE = b"[DONE]"
# Far more than a token with twenty alternatives, or the arguments of a tool in one piece.
LONGEST_EVENT = 1_000_000
_WRITTEN = ("content", "refusal", "text")
# More than any request has; a ledger holds no number beyond 2**63, and a negative one would give a
# budget back.
_MOST_TOKENS = 2**53


def load_json(text: bytes) -> Any:
    """Read a JSON text.

    Raises:
        ValueError: if it is none, holds `NaN` or `Infinity`, or is nested too deeply to be read.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            return json.loads(text, parse_constant=_refuse)
        except RecursionError:
            raise ValueError("nested too deeply") from None


def dump_json(value: Any) -> bytes:
    """Write a value that came from `load_json` as compact JSON in UTF-8.

    Raises:
        ValueError: if it is nested too deeply to be written.
    """
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        try:
            return json.dumps(value, separators=(",", ":")).encode()
        except RecursionError:
            raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> None:
    """Refuse NaN and Infinity, which Python would read and an upstream would not."""
    raise ValueError(constant)


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
    """Token counts that an upstream reported."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


def reported_usage(payload: Mapping[str, Any]) -> Usage | None:
    """Return the usage of a whole answer or a stream's usage chunk.

    Returns:
        None if it is not reported, or not by whole numbers from 0 to 2^53.
    """
    usage = payload.get("usage")
    if not isinstance(usage, dict):
        return None
    # Embeddings have no completion.
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


def without_logprobs(payload: dict[str, Any]) -> bytes:
    """Return the answer or chunk as JSON, without its log-probabilities."""
    for choice in choices_of(payload):
        choice.pop("logprobs", None)
    return dump_json(payload)


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
