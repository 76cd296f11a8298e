"""The declared load as an open loop: Poisson arrivals, and what they need in servers.

Users do not wait for each other, so their requests are sent at their own times and every latency
counts from there. A server that is too slow gathers a queue, which a closed loop can't show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuneline.config.evaluation import LoadConfig
from tuneline.evaluation.latency.closed_loop import (
    REQUEST_SECONDS,
    batch_between,
    counters,
    reason_to_stop,
)
from tuneline.evaluation.latency.table import Level, Objective, summarise, sustained, table
from tuneline.evaluation.latency.workload import Workload
from tuneline.harness.load_client import Timing, drive_open
from tuneline.harness.quantiles import samples_needed
from tuneline.serving.engines.server import EngineServer

# Rates that are tried below one that did not hold.
_MORE_TRIES = 2
# Of the goodput of a closed loop, what an open one may hold: arrivals come in bursts.
_BELOW_GOODPUT = 0.8
# A load of fewer requests claims no median; one that is so rare is not waited for endlessly.
_LEAST = samples_needed(0.5)
_LONGER = 4


@dataclass(frozen=True)
class OpenLoop:
    """One rate of arrivals.

    Attributes:
        rate: planned arrivals at one server, requests/s.
        row: the requests, summarised; times count from the planned arrivals.
        queue_growth: by how much TTFT grew with each second, in seconds; about 0 where a server
            keeps up.
        late: the longest that the client itself sent a request too late, in seconds.
        stopped: why it is not complete; empty if it is.
    """

    rate: float
    row: Level
    queue_growth: float
    late: float
    stopped: str = ""

    @property
    def holds(self) -> bool:
        """True if enough requests met the objective."""
        return self.row.within and not self.stopped

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "requests_per_s_planned": round(self.rate, 4),
            "queue_growth": None if math.isnan(self.queue_growth) else round(self.queue_growth, 4),
            "client_late_s": round(self.late, 5),
            "stopped": self.stopped,
            **table([self.row])[0],
        }


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Return the times of a Poisson process that has `count` arrivals in `count / rate` seconds.

    Given their number, the arrivals of a Poisson process are uniform: so the mean rate is exactly
    the declared one in each run, and only the bursts are random.
    """
    drawn = np.random.default_rng(seed).uniform(0.0, count / rate, count)
    return [float(moment) for moment in np.sort(drawn)]


def most_at_once(timings: Sequence[Timing]) -> int:
    """Return the largest number of requests that were under way at the same time."""
    changes = [(timing.arrived, 1) for timing in timings]
    changes += [(timing.arrived + timing.total, -1) for timing in timings]
    return int(max(np.cumsum([change for _, change in sorted(changes)])))


def queue_growth(timings: Sequence[Timing]) -> float:
    """Return the slope of TTFT over the planned arrival, in seconds a second.

    A queue that a server does not work off grows by 1 - capacity / load.
    """
    done = [timing for timing in timings if timing.ok]
    if len(done) < 2:
        return math.nan
    arrived = [timing.arrived for timing in done]
    if min(arrived) == max(arrived):
        return 0.0
    slope, _ = np.polyfit(arrived, [timing.ttft for timing in done], 1)
    return float(slope)


def measure_rate(
    server: EngineServer,
    workload: Workload,
    rate: float,
    *,
    seconds: float,
    seed: int,
    goal: Objective,
) -> OpenLoop:
    """Send requests at a rate.

    Args:
        server: the server, which has started.
        workload: the requests.
        rate: arrivals, requests/s.
        seconds: how long requests arrive, in seconds; up to four times as long if too few would.
        seed: seed of the arrivals.
        goal: the objective.
    """
    count = max(math.ceil(rate * seconds), min(_LEAST, math.ceil(rate * _LONGER * seconds)))
    batch = workload.take(0, count)
    before = counters(server)
    with server.client(timeout=REQUEST_SECONDS) as client:
        timings, took = drive_open(
            client,
            [request.messages for request in batch],
            arrivals(count, rate, seed),
            [request.tokens for request in batch],
        )
    size = batch_between(before, counters(server) if any(t.ok for t in timings) else None)
    return OpenLoop(
        rate,
        summarise(most_at_once(timings), timings, took, size, goal),
        queue_growth(timings),
        max(timing.late for timing in timings),
        reason_to_stop(server, timings, count),
    )


def measure_load(
    server: EngineServer,
    workload: Workload,
    load: LoadConfig,
    levels: Sequence[Level],
    *,
    seed: int,
    goal: Objective,
) -> list[OpenLoop]:
    """Send the declared load of one server, and lower ones until a rate holds.

    Args:
        server: the server, which has started.
        workload: the requests.
        load: the declared load.
        levels: the closed loops, which say what may hold.
        seed: seed of the arrivals.
        goal: the objective.

    Returns:
        The rates in the order in which they were tried; the first one is the declared load.
    """
    rate = load.rate_of_a_replica
    assert rate is not None
    tried: list[OpenLoop] = []
    for _ in range(1 + _MORE_TRIES):
        found = measure_rate(server, workload, rate, seconds=load.seconds, seed=seed, goal=goal)
        tried.append(found)
        if found.holds or found.stopped:
            break
        best = sustained(levels)
        guess = _BELOW_GOODPUT * best.goodput_per_s if best else 0.0
        rate = guess if 0 < guess < rate else rate / 2
    return tried


@dataclass(frozen=True)
class Capacity:
    """What one server bears, and how many the declared load needs.

    Attributes:
        goodput: requests/s that one server answers within the objective; 0 if none is known.
        replicas: servers that the declared load needs with its headroom; None without a declared
            load, or if one server bears nothing.
        users: users of one server, headroom kept.
    """

    goodput: float
    replicas: int | None
    users: int


def capacity(load: LoadConfig, levels: Sequence[Level], tried: Sequence[OpenLoop]) -> Capacity:
    """Return what one server bears, by what was measured.

    An open loop that did not hold bounds what closed loops promise: then the highest rate that
    held counts. Otherwise the best of all levels that are within the objective counts.
    """
    held = max((run.row.goodput_per_s for run in tried if run.holds), default=0.0)
    best = sustained(levels)
    goodput = held
    if (not tried or tried[0].holds) and best is not None:
        goodput = max(held, tried[0].rate if tried else 0.0, best.goodput_per_s)
    with_headroom = 1 + load.headroom
    replicas = None
    if load.rate is not None and goodput > 0:
        # A float's last digits must not ask for one more.
        replicas = math.ceil(load.rate * with_headroom / goodput - 1e-9)
    per_user = load.requests_per_user_per_minute / 60
    return Capacity(goodput, replicas, math.floor(goodput / with_headroom / per_user + 1e-9))
