"""Drive an OpenAI-compatible server with a fixed load and time every request.

Definitions are vLLM's (`benchmarks/serve.py`): TTFT is the time to the first chunk with
content; TPOT is the time after it, divided by the output tokens without the first. Tokens are
counted by the server's `usage` and not by chunks, since a chunk may hold several. Requests
carry `ignore_eos`, as there: each generates the same number of tokens, so that the load does
not depend on where a model ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneline.errors import TunelineError
from tuneline.serving.client.chat_protocol import ChatResult, Messages
from tuneline.serving.client.client import EngineClient

# Known to llama.cpp, vLLM and SGLang: the end-of-answer token is never chosen.
_SAME_WORK = {"ignore_eos": True}


@dataclass(frozen=True)
class Timing:
    """The timing of one request.

    Attributes:
        ttft: time to the first token, in seconds.
        total: time to the last token, in seconds.
        prompt_tokens: tokens of the prompt.
        cached_tokens: those of them that came from the prefix cache.
        output_tokens: tokens of the answer.
        error: why the request failed; empty if it did not.
    """

    ttft: float
    total: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    error: str = ""

    @property
    def ok(self) -> bool:
        """True if all requested tokens arrived and were counted."""
        return not self.error

    @property
    def tpot(self) -> float:
        """Time per output token after the first, in seconds; 0 for an answer of one token."""
        if self.output_tokens < 2:
            return 0.0
        return (self.total - self.ttft) / (self.output_tokens - 1)


def drive(
    client: EngineClient, prompts: Sequence[Messages], concurrency: int, max_tokens: int
) -> tuple[list[Timing], float]:
    """Send streamed chat requests, `concurrency` of them at any time (a closed loop).

    Args:
        client: a client of the server; a request fails after the client's timeout.
        prompts: the messages of each request.
        concurrency: requests under way at once.
        max_tokens: tokens of every answer, wherever the model would end it.

    Returns:
        A timing for each request, in the order of the prompts, and the time of all together,
        in seconds.
    """
    return asyncio.run(_drive(client, prompts, concurrency, max_tokens))


async def _drive(
    client: EngineClient, prompts: Sequence[Messages], concurrency: int, max_tokens: int
) -> tuple[list[Timing], float]:
    waiting = list(enumerate(prompts))[::-1]
    timings: dict[int, Timing] = {}
    async with client.async_http(concurrency) as http:

        async def worker() -> None:
            while waiting:
                number, messages = waiting.pop()
                timings[number] = await _one(client, http, messages, max_tokens)

        start = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        seconds = time.perf_counter() - start
    return [timings[number] for number in range(len(prompts))], seconds


async def _one(client: EngineClient, http: Any, messages: Messages, max_tokens: int) -> Timing:
    start = time.perf_counter()
    try:
        result = await client.achat(
            messages, http=http, max_tokens=max_tokens, stream=True, extra=_SAME_WORK
        )
    except TunelineError as error:
        return _failed(time.perf_counter() - start, str(error))
    return timing_of(result, max_tokens)


def timing_of(result: ChatResult, tokens: int) -> Timing:
    """Return the timing of a streamed answer.

    Args:
        result: the answer.
        tokens: the number of tokens that it must have. An answer with fewer, or without a
            count, has failed: it was cut by the context, or by a server that does not know
            `ignore_eos`.
    """
    made = result.usage.completion_tokens
    if not made:
        return _failed(result.total, "the server counted no tokens (no usage in the stream)")
    if made < tokens:
        reason = result.finish_reason or "none"
        return _failed(
            result.total, f"{made} of {tokens} tokens were generated (finish reason {reason})"
        )
    # An answer without any text has no chunk with content; its TTFT is the whole wait.
    first = result.total if result.ttft is None else result.ttft
    return Timing(
        ttft=first,
        # The time of the last content, as in vLLM; only protocol follows it.
        total=result.chunk_times[-1] if result.chunk_times else result.total,
        prompt_tokens=result.usage.prompt_tokens,
        cached_tokens=result.usage.cached_tokens,
        output_tokens=made,
    )


def errors_of(timings: Sequence[Timing]) -> list[str]:
    """Return the messages of the failed requests, each once."""
    return sorted({timing.error for timing in timings if not timing.ok})


def _failed(waited: float, error: str) -> Timing:
    return Timing(waited, waited, 0, 0, 0, error)
