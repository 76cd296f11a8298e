"""Closed loops at several concurrency levels, with what was measured before a server died."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.errors import TunelineError
from tuneline.evaluation.latency.table import Level, Objective, summarise
from tuneline.evaluation.latency.workload import Workload
from tuneline.harness.load_client import Timing, drive
from tuneline.serving.client import EngineClient
from tuneline.serving.engines.server import Counters, EngineServer

# A request without an answer after this long has failed.
REQUEST_SECONDS = 60.0
# Tokens of an answer in the warm-up: enough to prefill and decode once on every slot.
_WARM_UP_TOKENS = 8
# So many failures in a row are no coincidence; every further one might wait for its time-out.
_FAILURES = 3


@dataclass(frozen=True)
class ClosedLoop:
    """What was measured.

    Attributes:
        levels: the levels that were begun, in order.
        stopped: why the levels are not complete; empty if they are.
    """

    levels: tuple[Level, ...]
    stopped: str = ""


def warm_up(client: EngineClient, workload: Workload, count: int, slots: int) -> None:
    """Send requests that are not counted; what fails here fails again when it counts."""
    requests = workload.last(count)
    prompts = [request.messages for request in requests]
    tokens = [min(_WARM_UP_TOKENS, request.tokens) for request in requests]
    if prompts:
        drive(client, prompts, slots, tokens, give_up=_FAILURES)


def measure_levels(
    server: EngineServer,
    workload: Workload,
    concurrency: Sequence[int],
    requests: int,
    goal: Objective,
) -> ClosedLoop:
    """Drive a server at each concurrency level, until one can't be completed.

    Every request takes the next prompt, so that, with enough prompts, none is answered from
    the prefix cache of the same prompt.

    Args:
        server: the server, which has started.
        workload: the requests, in the order in which they are sent; repeated if too few.
        concurrency: the levels.
        requests: number of requests at each level; never fewer than two per concurrent one.
        goal: the objective.
    """
    levels: list[Level] = []
    at = 0
    with server.client(timeout=REQUEST_SECONDS) as client:
        for level in concurrency:
            count = max(requests, 2 * level)
            batch = workload.take(at, count)
            at += count
            before = counters(server)
            timings, seconds = drive(
                client,
                [request.messages for request in batch],
                level,
                [request.tokens for request in batch],
                give_up=max(_FAILURES, level),
            )
            # A server that hangs would be waited for once more.
            after = counters(server) if any(timing.ok for timing in timings) else None
            size = batch_between(before, after)
            levels.append(summarise(level, timings, seconds, size, goal))
            stopped = reason_to_stop(server, timings, count)
            if stopped:
                return ClosedLoop(tuple(levels), f"{stopped} at {level} at once")
    return ClosedLoop(tuple(levels))


def counters(server: EngineServer) -> Counters | None:
    """Read an engine's counters; None if it does not answer."""
    try:
        return server.counters()
    except TunelineError:
        return None


def batch_between(before: Counters | None, after: Counters | None) -> float:
    """Return the mean requests in a decoding step between two readings; NaN if one is missing."""
    return after.batch_since(before) if before and after else math.nan


def reason_to_stop(server: EngineServer, timings: Sequence[Timing], count: int) -> str:
    """Return why a load could not be completed; empty if it was.

    Args:
        server: the server.
        timings: the timings of the load.
        count: number of its requests.
    """
    ended = server.ended()
    if ended is not None:
        return f"the server {ended}"
    if len(timings) < count or not any(timing.ok for timing in timings):
        error = next((timing.error for timing in reversed(timings) if not timing.ok), "")
        return f"requests failed one after the other ({error})"
    return ""
