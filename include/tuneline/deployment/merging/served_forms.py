"""Speed and memory of the two ways to serve an adapter, and the decision between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median, stdev

from tuneline.asking.load import Timing, drive
from tuneline.evidence import Measurement, measure
from tuneline.serving.client import Messages
from tuneline.serving.engines.server import EngineServer

# Tokens of every answer: enough for a steady speed; on two cores both forms take some seconds.
MAX_TOKENS = 24
# Load changes from second to second; the median of three rounds forgets one bad round.
ROUNDS = 3
# A round has two requests for each that runs at once, and at least this many.
MIN_REQUESTS = 4


@dataclass(frozen=True)
class FormSpeed:
    """A way of serving with all slots taken: tokens/s with their error, failures, memory."""

    tokens_per_s: float
    error: float
    failed: int
    memory_bytes: int


def measure_form(server: EngineServer, prompts: Sequence[Messages], parallel: int) -> FormSpeed:
    """Drive a server with all slots taken."""
    following, timings, speeds = cycle(prompts), list[Timing](), list[float]()
    with server.client() as client:
        drive(client, prompts[:1], 1, 1)
        for _ in range(ROUNDS):
            batch = list(islice(following, max(MIN_REQUESTS, 2 * parallel)))
            found, seconds = drive(client, batch, parallel, MAX_TOKENS)
            timings += found
            speeds.append(sum(t.output_tokens for t in found if t.ok) / seconds)
    failed = sum(not timing.ok for timing in timings)
    error = round(stdev(speeds) / ROUNDS**0.5, 3)
    return FormSpeed(round(median(speeds), 2), error, failed, server.memory_bytes())


def slowdown(merged: FormSpeed, apart: FormSpeed) -> tuple[float, float] | None:
    """Return the share of throughput that the unmerged adapter costs, and its standard error.

    None if the merged model generated nothing.
    """
    if not merged.tokens_per_s:
        return None
    ratio = apart.tokens_per_s / merged.tokens_per_s
    # First-order propagation of the errors of a quotient.
    error = (
        (apart.error / merged.tokens_per_s) ** 2 + (ratio * merged.error / merged.tokens_per_s) ** 2
    ) ** 0.5
    return round(1.0 - ratio, 4), round(error, 4)


def decide(
    multi_tenant: bool, obstacle: str | None, lost: float | None, limit: float
) -> tuple[str, str]:
    """Return the decision, `merge` or `apart`, and its reason.

    Args:
        obstacle: why the engine can't serve the adapter next to the base; None if it can.
        lost: the throughput that the adapter costs; None if it could not be measured.
    """
    if not multi_tenant:
        return "merge", "one adapter and one model: merged, nothing is left to apply"
    if obstacle is None and lost is None:
        obstacle = "no throughput could be measured"
    if obstacle is None and lost is not None and lost > limit:
        obstacle = (
            f"on top of it this one costs {lost:.0%} of the throughput, more than "
            f"max_adapter_slowdown ({limit:.0%}) allows"
        )
    if obstacle is not None or lost is None:
        return "merge", f"several adapters were to share one base, but {obstacle}"
    return (
        "apart",
        f"several adapters share one base: on top of it this one costs {lost:.0%} of the "
        f"throughput, at most {limit:.0%} are allowed",
    )


def form_measurements(name: str, speed: FormSpeed | None) -> Iterator[Measurement]:
    """State the numbers of one way of serving; None if the engine can't serve it that way."""
    if speed is None:
        yield measure(f"{name}_tokens_per_s", None, "tokens/s")
        return
    yield measure(f"{name}_tokens_per_s", speed.tokens_per_s, "tokens/s", noise=speed.error)
    yield measure(f"{name}_memory", speed.memory_bytes, "bytes")
    yield measure(f"{name}_failed_requests", speed.failed, "requests", "==", 0)
