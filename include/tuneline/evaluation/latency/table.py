"""Turn request timings into the latency table and the sentence on hardware.

Metrics have AIPerf's names and units: `inter_token_latency` is vLLM's TPOT, `inter_chunk_latency`
its ITL. Percentiles are given only where the number of requests allows them, with intervals that
assume no distribution (none for chunks, which depend on each other).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from tuneline.asking.load import Timing, errors_of
from tuneline.statistics import TAIL, percentile, quantile, samples_needed, share_of

# Share of a level's requests that must meet the objective for the level to count.
WITHIN = 0.9
# Looks at the load that decides, and how many times as many requests the next one has. The error
# of an interval is shared by the looks (Bonferroni), so that all of them together err no more.
LOOKS, _GROWTH = 3, 3


@dataclass(frozen=True)
class Objective:
    """The service level, in seconds; `share` of the requests of a load must meet both limits."""

    max_ttft: float
    max_tpot: float
    share: float = WITHIN

    def looks(self) -> list[int]:
        """Return how many requests each look has; the first shows the share if none is missed."""
        first = math.ceil(math.log(TAIL / LOOKS) / math.log(self.share))
        return [first * _GROWTH**look for look in range(LOOKS)]

    def met(self, timing: Timing) -> bool:
        """Return True if a request was answered within both limits."""
        return timing.ok and timing.ttft <= self.max_ttft and timing.tpot <= self.max_tpot

    def text(self) -> str:
        """`TTFT ≤ 2 s, TPOT ≤ 0.2 s`."""
        return f"TTFT ≤ {self.max_ttft:g} s, TPOT ≤ {self.max_tpot:g} s"


@dataclass(frozen=True)
class Level:
    """One row of the table; times in seconds, percentiles NaN where too few requests claim them.

    Attributes:
        concurrency: requests under way at once; in an open loop the most there were.
        batch: mean requests in a decoding step by the engine's own counters.
        prompt_tokens: mean tokens of a prompt; `cached_share` came from the prefix cache.
        within_lower, within_upper: exact interval of the share that met the objective.
        within: True if enough of the requests sent met it, whatever the interval.
        metrics: the same and more under AIPerf's names; see `metrics`.
    """

    concurrency: int
    requests: int
    failed: int
    ttft_p50: float
    ttft_p95: float
    tpot_p50: float
    tpot_p95: float
    tokens_per_s: float
    requests_per_s: float
    goodput_per_s: float
    within_share: float
    within_lower: float
    within_upper: float
    batch: float
    prompt_tokens: float
    cached_share: float
    within: bool
    errors: tuple[str, ...] = ()
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def decides(self, goal: Objective) -> bool:
        """True if the objective is shown to be met, or to be missed."""
        return self.within_lower >= goal.share or self.within_upper < goal.share

    def share_text(self) -> str:
        """`96% of 138 requests, 90% to 99% by an exact interval`."""
        ends = f"{self.within_lower:.1%} to {self.within_upper:.1%}"
        return f"{self.within_share:.1%} of {self.requests} requests ({ends} by the exact interval)"


def summarise(
    concurrency: int,
    timings: Sequence[Timing],
    seconds: float,
    batch: float,
    goal: Objective,
    *,
    tail: float = TAIL,
) -> Level:
    """Summarise one load.

    `seconds` is its wall-clock time, `batch` the mean number of requests in a decoding step, `tail`
    the error of the interval of the share within the objective, on each side.
    """
    done = [timing for timing in timings if timing.ok]
    good = sum(goal.met(timing) for timing in timings)
    ttft = [timing.ttft for timing in done]
    # An answer of one token, or whose text arrived all at once, has no time between tokens.
    tpot = [timing.tpot for timing in done if timing.tpot > 0]
    prompt = sum(timing.prompt_tokens for timing in done)
    share = share_of(good, len(timings), tail)
    return Level(
        concurrency=concurrency,
        requests=len(timings),
        failed=len(timings) - len(done),
        ttft_p50=percentile(ttft, 50),
        ttft_p95=_p95(ttft),
        tpot_p50=percentile(tpot, 50),
        tpot_p95=_p95(tpot),
        tokens_per_s=sum(timing.output_tokens for timing in done) / seconds,
        requests_per_s=len(done) / seconds,
        goodput_per_s=good / seconds,
        within_share=share.value,
        within_lower=share.lower,
        within_upper=share.upper,
        batch=batch,
        prompt_tokens=prompt / max(1, len(done)),
        cached_share=sum(timing.cached_tokens for timing in done) / max(1, prompt),
        within=share.value >= goal.share,
        errors=tuple(errors_of(timings)),
        metrics=metrics(timings, seconds, good),
    )


def _p95(values: Sequence[float]) -> float:
    found = quantile(values, 0.95)
    return found.value if found else math.nan


def sustained(levels: Sequence[Level]) -> Level | None:
    """Return the highest level up to which every level met the objective."""
    best = None
    for level in sorted(levels, key=lambda level: level.concurrency):
        if not level.within:
            break
        best = level
    return best


def hardware_line(levels: Sequence[Level], machine: str, goal: Objective) -> str:
    """Say how many requests a machine serves, and how many machines the highest level needs."""
    best = sustained(levels)
    if best is None:
        fewest = min(level.concurrency for level in levels)
        at_once = "one request at a time" if fewest == 1 else f"{fewest} requests at once"
        return f"{machine} does not reach {goal.text()} even for {at_once}"
    top = max(level.concurrency for level in levels)
    line = (
        f"{machine} serves {best.concurrency} requests at once within {goal.text()} "
        f"({best.within_share:.0%} of {best.requests} requests were; "
        f"{best.tokens_per_s:.0f} tokens/s)"
    )
    if top > best.concurrency:
        needed = math.ceil(top / best.concurrency)
        line += f"; by calculation {top} at once need {needed} such machines"
    return line


def table(levels: Sequence[Level]) -> list[dict[str, Any]]:
    """Return the levels as rows for JSON, rounded; None where nothing was measured or claimed."""
    return [{name: _for_json(value) for name, value in asdict(level).items()} for level in levels]


def _for_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else round(value, 4)


PERCENTILES = (50, 90, 95, 99)
_MS = 1000.0


def claimed(requests: int) -> list[int]:
    """Return the percentiles that a number of requests allows."""
    return [q for q in PERCENTILES if requests >= samples_needed(q / 100)]


def unclaimed_text(requests: int) -> str:
    """Name the percentiles that are not claimed; empty if all are."""
    allowed = claimed(requests)
    return ", ".join(
        f"p{q} (needs {samples_needed(q / 100)} requests)" for q in PERCENTILES if q not in allowed
    )


def metrics(timings: Sequence[Timing], seconds: float, good: int) -> dict[str, dict[str, Any]]:
    """Return every metric of a load, by its name; `good` requests met the objective."""
    done = [timing for timing in timings if timing.ok]
    gaps = list(chain.from_iterable(timing.gaps for timing in done))
    output = sum(timing.output_tokens for timing in done)
    return {
        "request_count": _total(len(done), "requests"),
        "error_request_count": _total(len(timings) - len(done), "requests"),
        "time_to_first_token": _times([timing.ttft for timing in done]),
        "inter_token_latency": _times([timing.tpot for timing in done if timing.tpot > 0]),
        "inter_chunk_latency": _without_intervals(gaps, len(done)),
        "request_latency": _times([timing.total for timing in done]),
        "input_sequence_length": _lengths([timing.prompt_tokens for timing in done]),
        "output_sequence_length": _lengths([timing.output_tokens for timing in done]),
        "output_token_throughput": _total(output / seconds, "tokens/sec"),
        "request_throughput": _total(len(done) / seconds, "requests/sec"),
        "goodput": _total(good / seconds, "requests/sec"),
        "benchmark_duration": _total(seconds, "sec"),
    }


def _total(value: float, unit: str) -> dict[str, Any]:
    return {"unit": unit, "avg": round(value, 4)}


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    found = {
        "avg": float(np.mean(values)),
        "min": min(values),
        "max": max(values),
        "std": float(np.std(values)),
    }
    return {name: round(value, 3) for name, value in found.items()}


def _times(seconds: Sequence[float]) -> dict[str, Any]:
    values = [_MS * value for value in seconds]
    found = {q: quantile(values, q / 100) for q in PERCENTILES}
    return {
        "unit": "ms",
        **_spread(values),
        **{f"p{q}": round(at.value, 3) if at else None for q, at in found.items()},
        "intervals": {
            f"p{q}": [round(at.lower, 3), round(at.upper, 3)] for q, at in found.items() if at
        },
    }


def _without_intervals(seconds: Sequence[float], requests: int) -> dict[str, Any]:
    values, allowed = [_MS * value for value in seconds], claimed(requests)
    shown = {
        f"p{q}": round(percentile(values, q), 3) if values and q in allowed else None
        for q in PERCENTILES
    }
    return {"unit": "ms", **_spread(values), **shown}


def _lengths(values: Sequence[int]) -> dict[str, Any]:
    """Lengths are the load itself and no estimate, so that every percentile stands."""
    shown = {f"p{q}": round(percentile(values, q), 1) for q in PERCENTILES} if values else {}
    return {"unit": "tokens", **_spread(values), **shown}
