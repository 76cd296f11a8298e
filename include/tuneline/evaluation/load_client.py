"""A load client for OpenAI-compatible servers: what each request waited for.

Definitions are vLLM's (`benchmarks/serve.py`): TTFT is the time to the first
chunk with content; TPOT is the time after it, over the output tokens but the
first. Tokens are those that the server's `usage` counts, never chunks, since a
chunk may hold several tokens.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A request that takes longer than this is counted as failed.
REQUEST_SECONDS = 120.0


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
        """Whether an answer with content and a token count came."""
        return not self.error

    @property
    def tpot(self) -> float:
        """Seconds per output token after the first; 0 for an answer of one token."""
        if self.output_tokens < 2:
            return 0.0
        return (self.total - self.ttft) / (self.output_tokens - 1)


def drive(
    base_url: str, bodies: Sequence[Mapping[str, Any]], concurrency: int
) -> tuple[list[Timing], float]:
    """Send chat requests, `concurrency` of them at any time (a closed loop).

    Args:
        base_url: of the server, without `/v1`.
        bodies: request bodies for `/v1/chat/completions`; streaming is switched on.
        concurrency: requests under way at once.

    Returns:
        A timing for each request, in the order of `bodies`, and the seconds of the whole.
    """
    return asyncio.run(_drive(base_url, bodies, concurrency))


async def _drive(
    base_url: str, bodies: Sequence[Mapping[str, Any]], concurrency: int
) -> tuple[list[Timing], float]:
    import httpx

    waiting = asyncio.Queue[int]()
    for number in range(len(bodies)):
        waiting.put_nowait(number)
    timings: dict[int, Timing] = {}
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(timeout=REQUEST_SECONDS, limits=limits) as client:

        async def worker() -> None:
            while not waiting.empty():
                number = waiting.get_nowait()
                timings[number] = await _one(client, base_url, bodies[number])

        start = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        seconds = time.perf_counter() - start
    return [timings[number] for number in range(len(bodies))], seconds


async def _one(client: Any, base_url: str, body: Mapping[str, Any]) -> Timing:
    """Send one streamed request and time it."""
    import httpx

    request = {**body, "stream": True, "stream_options": {"include_usage": True}}
    start = time.perf_counter()
    first = last = 0.0
    usage: Mapping[str, Any] = {}
    try:
        url = f"{base_url}/v1/chat/completions"
        async with client.stream("POST", url, json=request) as answer:
            if answer.status_code != 200:
                return _failed(start, f"HTTP {answer.status_code}")
            async for line in answer.aiter_lines():
                event = _event(line)
                if event is None:
                    continue
                usage = event.get("usage") or usage
                if _has_content(event):
                    last = time.perf_counter()
                    first = first or last
    except (httpx.HTTPError, ValueError) as error:
        return _failed(start, f"{type(error).__name__}: {error}")
    if not first:
        return _failed(start, "an answer without content")
    if "completion_tokens" not in usage:
        return _failed(start, "the server counted no tokens (no usage in the stream)")
    return Timing(
        ttft=first - start,
        total=last - start,
        prompt_tokens=int(usage.get("prompt_tokens", 0)),
        cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        output_tokens=int(usage["completion_tokens"]),
    )


def _failed(start: float, error: str) -> Timing:
    waited = time.perf_counter() - start
    return Timing(waited, waited, 0, 0, 0, error)


def _event(line: str) -> dict[str, Any] | None:
    """The JSON of a server-sent event, or None for other lines and the end mark."""
    if not line.startswith("data:"):
        return None
    data = line.removeprefix("data:").strip()
    if data == "[DONE]":
        return None
    event = json.loads(data)
    return event if isinstance(event, dict) else None


def _has_content(event: Mapping[str, Any]) -> bool:
    choices = event.get("choices") or []
    return any((choice.get("delta") or {}).get("content") for choice in choices)
