"""The chat protocol of OpenAI-compatible engines: requests, answers, streams and errors."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneline.errors import RetryableError, TunelineError

Messages = Sequence[Mapping[str, str]]

# What trtllm-serve says of a prompt that is too long; llama.cpp has a type of error for it.
_OVERFLOW = re.compile(r"should not exceed max_(?:seq_len|num_tokens|input_len)")


class EngineError(TunelineError):
    """The engine refused a request or broke its protocol."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ContextOverflow(EngineError):
    """The prompt is longer than the engine's context."""


class EngineUnavailable(RetryableError):
    """The engine can't be reached, is still loading, or timed out."""


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token: its text and its natural-log probability."""

    token: str
    logprob: float


@dataclass(frozen=True)
class Usage:
    """Tokens of a request as the engine counted them; all 0 when it gave no counts.

    Attributes:
        prompt_tokens: tokens of the rendered prompt.
        completion_tokens: generated tokens.
        cached_tokens: prompt tokens that came from the engine's prefix cache.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class ChatResult:
    """One answer.

    Attributes:
        text: the answer.
        finish_reason: the engine's reason, `stop` or `length`.
        usage: tokens as the engine counted them.
        ttft: time to the first content, in seconds; None without streaming.
        total: time from sending to the last byte, in seconds.
        chunk_times: time of each content chunk, in seconds; empty without streaming.
        logprobs: log-probabilities of the generated tokens, if requested.
    """

    text: str
    finish_reason: str
    usage: Usage
    ttft: float | None
    total: float
    chunk_times: tuple[float, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


def request_body(
    model: str,
    messages: Messages,
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int | None = 0,
    logprobs: bool = False,
    stream: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the JSON body of a request; the options are those of `EngineClient.chat`."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [dict(message) for message in messages],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": stream,
    }
    if seed is not None:
        body["seed"] = seed
    if logprobs:
        body["logprobs"] = True
    if stream:
        body["stream_options"] = {"include_usage": True}
    return {**body, **(extra or {})}


def parse_answer(document: Mapping[str, Any], total: float) -> ChatResult:
    """Read a chat completion that was not streamed.

    Raises:
        EngineError: if the document is not a chat completion.
    """
    try:
        choice = document["choices"][0]
        text = choice["message"]["content"] or ""
    except (KeyError, IndexError, TypeError):
        raise EngineError(f"the engine's answer is not a chat completion: {document}") from None
    return ChatResult(
        text=text,
        finish_reason=str(choice.get("finish_reason")),
        ttft=None,
        total=total,
        logprobs=tuple(_logprobs(choice)),
        usage=_usage(document),
    )


def continuation_body(
    model: str, ids: Sequence[int], *, max_tokens: int, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the JSON body of a request that goes on from token ids, greedily."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(ids),
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "seed": 0,
    }
    return {**body, **(extra or {})}


def parse_continuation(document: Mapping[str, Any]) -> str:
    """Read a text completion.

    Raises:
        EngineError: if the document is not a text completion.
    """
    try:
        return str(document["choices"][0]["text"])
    except (KeyError, IndexError, TypeError):
        raise EngineError(f"the engine's answer is not a text completion: {document}") from None


class StreamCollector:
    """Collects a stream of chat chunks (server-sent events) with the time of each."""

    def __init__(self, started: float) -> None:
        """Start collecting; `started` is the `time.perf_counter()` of the request."""
        self._started = started
        self._parts: list[str] = []
        self._times: list[float] = []
        self._logprobs: list[TokenLogprob] = []
        self._counted: Mapping[str, Any] = {}
        self._finish = ""
        self._complete = False

    def feed(self, line: str, at: float | None = None) -> None:
        """Take one line of the stream.

        Args:
            line: the line.
            at: when it came, by `time.perf_counter()`; None for now.

        Raises:
            EngineError: if the engine reported an error in the stream.
        """
        if not line.startswith("data:"):
            return
        payload = line.removeprefix("data:").strip()
        if payload == "[DONE]":
            self._complete = True
            return
        document = json.loads(payload)
        if "error" in document:
            raise EngineError(f"the engine broke off: {document['error']}")
        if document.get("usage"):
            self._counted = document
        for choice in document.get("choices", []):
            content = choice.get("delta", {}).get("content")
            if content:
                self._parts.append(content)
                now = time.perf_counter() if at is None else at
                self._times.append(now - self._started)
            self._logprobs.extend(_logprobs(choice))
            self._finish = choice.get("finish_reason") or self._finish

    @property
    def begun(self) -> bool:
        """Whether a part of the answer is there."""
        return bool(self._times)

    def result(self, ended: float | None = None) -> ChatResult:
        """Return the whole answer.

        Args:
            ended: when its last byte came, by `time.perf_counter()`; None for now.

        Raises:
            EngineError: if the stream ended before its end mark.
        """
        if not self._complete:
            raise EngineError("the engine's stream ended before its end mark")
        return ChatResult(
            text="".join(self._parts),
            finish_reason=self._finish,
            ttft=self._times[0] if self._times else None,
            total=(time.perf_counter() if ended is None else ended) - self._started,
            chunk_times=tuple(self._times),
            logprobs=tuple(self._logprobs),
            usage=_usage(self._counted),
        )


def _usage(document: Mapping[str, Any]) -> Usage:
    usage = document.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        cached_tokens=int(details.get("cached_tokens") or 0),
    )


def _logprobs(choice: Mapping[str, Any]) -> Iterator[TokenLogprob]:
    for entry in (choice.get("logprobs") or {}).get("content") or []:
        yield TokenLogprob(str(entry["token"]), float(entry["logprob"]))


def _error(text: str) -> dict[str, Any]:
    """Return the error in an answer; trtllm-serve does not wrap it in `error`."""
    try:
        document = json.loads(text)
        error = document.get("error", document)
    except (ValueError, AttributeError):
        return {}
    return error if isinstance(error, dict) else {"message": str(error)}


def raise_for_status(status: int, text: str) -> None:
    """Raise the exception for an engine's error answer.

    Raises:
        ContextOverflow: if the prompt is too long.
        EngineUnavailable: if it is busy or loading, or a gateway in between failed.
        EngineError: for any other status of 400 and above.
    """
    if status < 400:
        return
    error = _error(text)
    message = str(error.get("message") or text[:200] or f"status {status}")
    if error.get("type") == "exceed_context_size_error" or _OVERFLOW.search(message):
        raise ContextOverflow(f"the prompt does not fit the engine's context: {message}", status)
    if status in (429, 502, 503, 504):
        raise EngineUnavailable(f"the engine answered {status}: {message}")
    raise EngineError(f"the engine answered {status}: {message}", status)
