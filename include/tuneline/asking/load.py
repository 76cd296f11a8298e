"""Drive an OpenAI-compatible server with a load and time every request.

A closed loop keeps a number of requests under way, and so hides how long users would have waited
(coordinated omission); an open loop sends each at its own time, and counts from the arrival that
was planned. Definitions are vLLM's (`benchmarks/serve.py`) and AIPerf's: TTFT is the time to the
first chunk with content; TPOT the time after it, divided by the output tokens without the first, as
the server's `usage` counts them. Requests carry `ignore_eos`, so that the load does not depend on
where a model ends. Bytes are stamped as they come (`serving/timed_stream.py`): what this client
does with an answer is not measured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

from tuneline.errors import TunelineError
from tuneline.machine.memory import no_collections
from tuneline.serving.client import ChatResult, EngineClient, Messages
from tuneline.serving.timed_stream import Exchange, Link, read_answer, streamed_request

# Known to llama.cpp, vLLM and SGLang: the end-of-answer token is never chosen.
_SAME_WORK = {"ignore_eos": True}
# An open loop takes or opens a request's connection so long before its arrival, in seconds.
_LEAD = 0.02


@dataclass(frozen=True)
class Timing:
    """The timing of one request, in seconds; in an open loop from the planned arrival.

    Attributes:
        cached_tokens: prompt tokens that came from the prefix cache.
        error: why the request failed; empty if it did not.
        gaps: times between chunks with content.
        arrived: planned arrival after the start of an open loop; 0 in a closed one.
        late: how much later than planned it was sent; the client's own lag.
    """

    ttft: float
    total: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    error: str = ""
    gaps: tuple[float, ...] = ()
    arrived: float = 0.0
    late: float = 0.0

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
    client: EngineClient,
    prompts: Sequence[Messages],
    concurrency: int,
    max_tokens: int | Sequence[int],
    *,
    give_up: int | None = None,
) -> tuple[list[Timing], float]:
    """Send streamed chat requests, `concurrency` of them at any time (a closed loop).

    Each answer has `max_tokens`, wherever the model would end it. After `give_up` failures in a row
    no further request is sent. Returns a timing for each that was sent, and all seconds together.
    """
    tokens = _each(max_tokens, prompts)
    requests = _requests(client, prompts, tokens)
    with no_collections():
        exchanges, seconds = asyncio.run(_drive(client, requests, concurrency, give_up))
    timings = [_timing(client, *each) for each in zip(exchanges, tokens, strict=False)]
    return timings, seconds


def drive_open(
    client: EngineClient,
    prompts: Sequence[Messages],
    arrivals: Sequence[float],
    max_tokens: int | Sequence[int],
) -> tuple[list[Timing], float]:
    """Send each request at its time of `arrivals`, in seconds (an open loop); see `drive`."""
    tokens = _each(max_tokens, prompts)
    requests = _requests(client, prompts, tokens)
    with no_collections():
        exchanges, start, seconds = asyncio.run(_drive_open(client, requests, arrivals))
    timings = []
    for exchange, planned, wanted in zip(exchanges, arrivals, tokens, strict=True):
        timing, late = _timing(client, exchange, wanted), exchange.sent - start - planned
        first, total = timing.ttft + late, timing.total + late
        timings.append(replace(timing, ttft=first, total=total, arrived=planned, late=late))
    return timings, seconds


def _each(max_tokens: int | Sequence[int], prompts: Sequence[Messages]) -> Sequence[int]:
    return [max_tokens] * len(prompts) if isinstance(max_tokens, int) else max_tokens


def _requests(
    client: EngineClient, prompts: Sequence[Messages], tokens: Sequence[int]
) -> list[bytes]:
    """Return the requests as bytes, made before any clock starts."""
    return [
        streamed_request(client, messages, max_tokens=wanted, extra=_SAME_WORK)
        for messages, wanted in zip(prompts, tokens, strict=True)
    ]


async def _drive(
    client: EngineClient, requests: Sequence[bytes], concurrency: int, give_up: int | None
) -> tuple[list[Exchange], float]:
    waiting = list(enumerate(requests))[::-1]
    exchanges: dict[int, Exchange] = {}
    failures = 0
    async with _open_links(client, concurrency) as links:

        async def worker(link: Link) -> None:
            nonlocal failures
            while waiting and (give_up is None or failures < give_up):
                number, request = waiting.pop()
                exchanges[number] = exchange = await link.ask(request)
                failures = failures + 1 if exchange.refused else 0

        start = time.perf_counter()
        await asyncio.gather(*(worker(link) for link in links))
        seconds = time.perf_counter() - start
    return [exchanges[number] for number in sorted(exchanges)], seconds


async def _drive_open(
    client: EngineClient, requests: Sequence[bytes], arrivals: Sequence[float]
) -> tuple[list[Exchange], float, float]:
    # As many connections as requests under way: none waits for another one's.
    async with _open_links(client, 1) as free:
        start = time.perf_counter() + _LEAD

        async def send(number: int) -> Exchange:
            due = start + arrivals[number]
            await asyncio.sleep(due - _LEAD - time.perf_counter())
            link = free.pop() if free else Link(client.base_url, client.timeout)
            await link.open()
            await asyncio.sleep(due - time.perf_counter())
            exchange = await link.ask(requests[number])
            free.append(link)
            return exchange

        exchanges = await asyncio.gather(*(send(number) for number in range(len(requests))))
        seconds = time.perf_counter() - start
    return list(exchanges), start, seconds


@asynccontextmanager
async def _open_links(client: EngineClient, count: int) -> AsyncIterator[list[Link]]:
    """Open connections; a server that accepts none is seen when it is asked."""
    links = [Link(client.base_url, client.timeout) for _ in range(count)]
    await asyncio.gather(*(link.open() for link in links))
    try:
        yield links
    finally:
        for link in links:
            link.close()


def _timing(client: EngineClient, exchange: Exchange, tokens: int) -> Timing:
    try:
        result = read_answer(exchange, client.base_url)
    except TunelineError as error:
        return _failed(exchange.ended - exchange.sent, str(error))
    return timing_of(result, tokens)


def timing_of(result: ChatResult, tokens: int) -> Timing:
    """Return the timing of a streamed answer.

    An answer with fewer than `tokens` tokens, or without a count, has failed: it was cut by the
    context, or by a server that does not know `ignore_eos`.
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
    times = result.chunk_times
    return Timing(
        ttft=first,
        # The time of the last content, as in vLLM; only protocol follows it.
        total=times[-1] if times else result.total,
        prompt_tokens=result.usage.prompt_tokens,
        cached_tokens=result.usage.cached_tokens,
        output_tokens=made,
        gaps=tuple(later - earlier for earlier, later in pairwise(times)),
    )


def errors_of(timings: Sequence[Timing]) -> list[str]:
    """Return the messages of the failed requests, each once."""
    return sorted({timing.error for timing in timings if not timing.ok})


def _failed(waited: float, error: str) -> Timing:
    return Timing(waited, waited, 0, 0, 0, error)
