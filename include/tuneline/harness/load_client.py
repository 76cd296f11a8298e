"""A load client for OpenAI-compatible servers: what each request waited for.

Definitions are vLLM's (`benchmarks/serve.py`): TTFT is the time to the first
chunk with content; TPOT is the time after it, over the output tokens but the
first. Tokens are those that the server's `usage` counts, never chunks, since a
chunk may hold several tokens. As there, requests carry `ignore_eos`: every one makes
the same number of tokens, so that the load does not depend on where a model ends.
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

# llama.cpp, vLLM and SGLang know it: the end-of-answer token is never chosen.
_SAME_WORK = {"ignore_eos": True}


@dataclass(frozen=True)
class Timing:
    """What one request took; seconds."""

    ttft: float
    total: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether all tokens that were asked for came and were counted."""
        return not self.error

    @property
    def tpot(self) -> float:
        """Seconds per output token after the first; 0 for an answer of one token."""
        if self.output_tokens < 2:
            return 0.0
        return (self.total - self.ttft) / (self.output_tokens - 1)


def drive(
    client: EngineClient, prompts: Sequence[Messages], concurrency: int, max_tokens: int
) -> tuple[list[Timing], float]:
    """Send streamed chat requests, `concurrency` of them at any time (a closed loop).

    Args:
        client: of the server; its timeout is when a request counts as failed.
        prompts: the messages of each request.
        concurrency: requests under way at once.
        max_tokens: tokens of every answer, whatever the model would like.

    Returns:
        A timing for each request, in the order of the prompts, and the seconds of the whole.
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
    """The timing of a streamed answer.

    Args:
        result: the answer.
        tokens: how many it had to have. One with fewer, or without a count, has failed: it
            was cut by the context, or by a server that does not know `ignore_eos`.
    """
    made = result.usage.completion_tokens
    if not made:
        return _failed(result.total, "the server counted no tokens (no usage in the stream)")
    if made < tokens:
        reason = result.finish_reason or "none"
        return _failed(
            result.total, f"{made} of {tokens} tokens were generated (finish reason {reason})"
        )
    # Tokens may be such that no text shows: then all of the wait was for the first of it.
    first = result.total if result.ttft is None else result.ttft
    return Timing(
        ttft=first,
        # The last content, as vLLM counts; what follows it is protocol.
        total=result.chunk_times[-1] if result.chunk_times else result.total,
        prompt_tokens=result.usage.prompt_tokens,
        cached_tokens=result.usage.cached_tokens,
        output_tokens=made,
    )


def errors_of(timings: Sequence[Timing]) -> list[str]:
    """What went wrong with the requests that failed, each message once."""
    return sorted({timing.error for timing in timings if not timing.ok})


def _failed(waited: float, error: str) -> Timing:
    return Timing(waited, waited, 0, 0, 0, error)
