"""The requests of the benchmark, and the loads that a server is driven with.

Prompts are validation rows, so what they share with others, as the system turn, comes from the
prefix cache as in production. None is sent twice: rows that come again have a number where their
own part begins, or the cache would answer them without prefill. Each answer has as many tokens as
the row's own. The declared load is an open loop of Poisson arrivals: a server that is too slow
gathers a queue, which a closed loop can't show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from os.path import commonprefix
from typing import Any

import numpy as np

from tuneline.asking.load import Timing, drive, drive_open
from tuneline.config.evaluation import LoadConfig
from tuneline.data.tables.rows import Row
from tuneline.errors import TunelineError
from tuneline.evaluation.latency.table import LOOKS, Level, Objective, summarise, sustained, table
from tuneline.models.tool_turns import is_result
from tuneline.serving.client import EngineClient, Messages
from tuneline.serving.engines.server import Counters, EngineServer
from tuneline.statistics import TAIL, percentile, samples_needed

# The token that ends an answer is generated too. It also makes every answer two tokens long, which
# a time per output token needs.
_END = 1
# Its multiples, taken modulo 1, fill the unit interval evenly wherever a sequence of them begins
# and ends (Kronecker's sequence of the golden ratio).
_GOLDEN = 0.6180339887498949


# Between the turns of a prompt; a lone surrogate is in no text of a dataset.
_TURN = "\ud800"


@dataclass(frozen=True)
class Request:
    """One request: its messages and the tokens of its answer.

    Attributes:
        shared: characters that another prompt of the workload begins with.
        own_tokens: tokens of the rest, which an engine computes if it has not seen this prompt.
    """

    messages: Messages
    tokens: int
    shared: int
    own_tokens: int

    def again(self, time: int) -> Request:
        """Return it for another time than the first, 0: a number replaces what a person says.

        It stands where its own part begins, or in the next question: what an assistant, a tool or
        the declaration of tools says may be JSON.
        """
        turns, asked, start = list(self.messages), 0, 0
        for number, turn in enumerate(turns):
            if turn["role"] == "user" and not is_result(turn):
                asked, at = number, max(0, min(self.shared - start, len(turn["content"])))
                if start + len(turn["content"]) >= self.shared:
                    break
            start += len(turn["content"]) + len(_TURN)
        said, mark = turns[asked]["content"], f"{time} " if time else ""
        turns[asked] = {**turns[asked], "content": said[:at] + mark + said[at + len(mark) :]}
        return replace(self, messages=turns)


@dataclass(frozen=True)
class Lengths:
    """The distribution of lengths, in tokens."""

    count: int
    mean: float
    p50: float
    p95: float
    longest: int


@dataclass(frozen=True)
class Workload:
    """Requests in order, over and over; lengths of the answers, and how many the cap shortens."""

    requests: tuple[Request, ...]
    expected: Lengths
    capped: int

    def take(self, start: int, count: int) -> list[Request]:
        """Return requests from a place on; after the last one comes the first again, changed."""
        places = (divmod(start + n, len(self.requests)) for n in range(count))
        return [self.requests[number].again(time) for time, number in places]

    def last(self, count: int) -> list[Request]:
        """Return requests from the end, which `take` comes to last."""
        return self.take(-count, count)


def workload_of(
    rows: Sequence[Row], tokenize: Callable[[Sequence[str]], list[list[int]]], cap: int
) -> Workload:
    """Make a workload of rows, whose stretches are alike in the length of answers."""
    full = [len(ids) + _END for ids in tokenize([row.answer for row in rows])]
    texts = [_TURN.join(turn["content"] for turn in row.prompt) for row in rows]
    shared = [0] * len(rows)
    # In order, the prompts that begin alike for longest are neighbours.
    for a, b in pairwise(sorted(range(len(rows)), key=texts.__getitem__)):
        shared[b] = len(commonprefix([texts[a], texts[b]]))  # noqa: RUF071 - of characters
        shared[a] = max(shared[a], shared[b])
    # Each with the end of its turn, which is no other prompt's either.
    parts = [f"{text[at:]}\n".replace(_TURN, "\n") for text, at in zip(texts, shared, strict=True)]
    own = [len(ids) for ids in tokenize(parts)]
    mean = round(sum(full) / len(full), 2)
    by_length = sorted(range(len(rows)), key=lambda number: full[number])
    places = sorted(range(len(rows)), key=lambda place: place * _GOLDEN % 1.0)
    # `places[k]` is the moment of the k-th shortest answer.
    moments = dict(zip(places, by_length, strict=True))
    order = [moments[place] for place in range(len(rows))]
    return Workload(
        tuple(Request(rows[n].prompt, min(full[n], max(2, cap)), shared[n], own[n]) for n in order),
        Lengths(len(full), mean, percentile(full, 50), percentile(full, 95), max(full)),
        sum(count > cap for count in full),
    )


# A request without an answer after this long has failed.
REQUEST_SECONDS = 60.0
# Tokens of an answer in the warm-up: enough to prefill and decode once on every slot.
_WARM_UP_TOKENS = 8
# So many failures in a row are no coincidence; every further one might wait for its time-out.
_FAILURES = 3


@dataclass(frozen=True)
class ClosedLoop:
    """The levels that were begun, in order, and why they are not complete, if they are not.

    `sent` requests of the workload are used up.
    """

    levels: tuple[Level, ...]
    sent: int
    stopped: str = ""


def warm_up(client: EngineClient, workload: Workload, count: int, slots: int) -> None:
    """Send requests that are not counted; what fails here fails again when it counts."""
    if requests := workload.last(count):
        tokens = [min(_WARM_UP_TOKENS, request.tokens) for request in requests]
        drive(client, [r.messages for r in requests], slots, tokens, give_up=_FAILURES)


def _counters(server: EngineServer) -> Counters | None:
    """Read an engine's counters; None if it does not answer."""
    with suppress(TunelineError):
        return server.counters()
    return None


def _batch_since(server: EngineServer, before: Counters | None, timings: Sequence[Timing]) -> float:
    """Return the mean requests in a decoding step since a reading; NaN if one is missing."""
    # A server that hangs would be waited for once more.
    after = _counters(server) if before and any(timing.ok for timing in timings) else None
    return after.batch_since(before) if before and after else math.nan


def measure_levels(
    server: EngineServer,
    workload: Workload,
    concurrency: Sequence[int],
    requests: int,
    goal: Objective,
) -> ClosedLoop:
    """Drive a server at each concurrency level, from the lowest, until one can't be completed.

    Each has `requests`, and never fewer than two per concurrent one; the lowest, which decides,
    has as many as show that the objective is met or missed, see `Objective.looks`.
    """
    levels: list[Level] = []
    at = 0
    with server.client(timeout=REQUEST_SECONDS) as client:
        for level in concurrency:
            least = max(requests, 2 * level)
            totals = [least] if levels else sorted({max(least, look) for look in goal.looks()})
            timings: list[Timing] = []
            seconds, before = 0.0, _counters(server)
            for total in totals:
                # The next prompts: none is answered from the cache of the same one.
                batch = workload.take(at, total - len(timings))
                messages, tokens = zip(*((one.messages, one.tokens) for one in batch), strict=True)
                fails = max(_FAILURES, level)
                more, took = drive(client, messages, level, tokens, give_up=fails)
                at, timings, seconds = at + len(batch), [*timings, *more], seconds + took
                stopped = reason_to_stop(server, more, len(batch))
                size = _batch_since(server, before, timings)
                tail = TAIL if levels else TAIL / LOOKS
                row = summarise(level, timings, seconds, size, goal, tail=tail)
                if stopped or row.decides(goal):
                    break
            levels.append(row)
            if stopped:
                return ClosedLoop(tuple(levels), at, f"{stopped} at {level} at once")
    return ClosedLoop(tuple(levels), at)


def reason_to_stop(server: EngineServer, timings: Sequence[Timing], count: int) -> str:
    """Return why a load could not be completed; empty if it was."""
    if (ended := server.ended()) is not None:
        return f"the server {ended}"
    if len(timings) < count or not any(timing.ok for timing in timings):
        error = next((timing.error for timing in reversed(timings) if not timing.ok), "")
        return f"requests failed one after the other ({error})"
    return ""


# Rates that are tried below one that did not hold.
_MORE_TRIES = 2
# Of the goodput of a closed loop, what an open one may hold: arrivals come in bursts.
_BELOW_GOODPUT = 0.8
# A load of fewer requests claims no median.
_LEAST = samples_needed(0.5)
# A load that is too rare to decide is sent for at most this many times its seconds.
_LONGER = 4


@dataclass(frozen=True)
class OpenLoop:
    """One rate of arrivals, requests/s; times count from the planned ones, in seconds.

    Attributes:
        queue_growth: by how much TTFT grew with each second; about 0 where a server keeps up.
        late: the longest that the client itself sent a request too late.
        shared: share of the prompts' tokens that other prompts begin with: all that a prefix cache
            may know.
        stopped: why it is not complete; empty if it is.
    """

    rate: float
    row: Level
    queue_growth: float
    late: float
    shared: float
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
            "shared_share": round(self.shared, 4),
            "stopped": self.stopped,
            **table([self.row])[0],
        }


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Return the times of a Poisson process that has `count` arrivals in `count / rate` seconds.

    Given their number they are uniform: the mean rate is exact, only the bursts are random.
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
    start: int,
    *,
    seconds: float,
    seed: int,
    goal: Objective,
    least: int = _LEAST,
) -> OpenLoop:
    """Send requests at a rate for some seconds; up to four times as long for `least` of them."""
    count = max(math.ceil(rate * seconds), min(least, math.ceil(rate * _LONGER * seconds)))
    batch = workload.take(start, count)
    before = _counters(server)
    with server.client(timeout=REQUEST_SECONDS) as client:
        timings, took = drive_open(
            client,
            [request.messages for request in batch],
            arrivals(count, rate, seed),
            [request.tokens for request in batch],
        )
    size = _batch_since(server, before, timings)
    own = sum(one.own_tokens for one, had in zip(batch, timings, strict=True) if had.ok)
    return OpenLoop(
        rate,
        summarise(most_at_once(timings), timings, took, size, goal),
        queue_growth(timings),
        max(timing.late for timing in timings),
        1 - own / max(1, sum(timing.prompt_tokens for timing in timings)),
        reason_to_stop(server, timings, count),
    )


def measure_load(
    server: EngineServer,
    workload: Workload,
    load: LoadConfig,
    closed: ClosedLoop,
    *,
    seed: int,
    goal: Objective,
) -> list[OpenLoop]:
    """Send the declared load of one server, and lower ones (see `closed`) until a rate holds.

    The declared one has as many requests as decide with a good chance; the others only inform.
    """
    rate = load.rate_of_a_replica
    assert rate is not None
    tried: list[OpenLoop] = []
    start, best = closed.sent, sustained(closed.levels)
    for least in [goal.looks()[-1]] + _MORE_TRIES * [_LEAST]:
        found = measure_rate(
            server, workload, rate, start, seconds=load.seconds, seed=seed, goal=goal, least=least
        )
        tried.append(found)
        start += found.row.requests
        if found.holds or found.stopped:
            break
        guess = _BELOW_GOODPUT * best.goodput_per_s if best else 0.0
        rate = guess if 0 < guess < rate else rate / 2
    return tried


@dataclass(frozen=True)
class Capacity:
    """What one server sustains, requests/s within the objective, and its users.

    `replicas` are those that the declared load needs with its headroom; None without a load, or if
    one server sustains nothing.
    """

    goodput: float
    replicas: int | None
    users: int


def capacity(load: LoadConfig, levels: Sequence[Level], tried: Sequence[OpenLoop]) -> Capacity:
    """Return what one server sustains: the best level within the objective.

    An open loop that did not hold bounds what closed loops promise: then the highest rate that
    held.
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
