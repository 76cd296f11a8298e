"""Metrics of a load under the names and in the units of NVIDIA's AIPerf.

`inter_token_latency` is what vLLM calls TPOT, `inter_chunk_latency` what vLLM calls ITL.
Percentiles stand only where the number of requests bears them, with intervals that assume no
distribution; the chunks of one answer depend on each other, so their percentiles have no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from tuneline.harness.load_client import Timing
from tuneline.harness.quantiles import percentile, quantile, samples_needed

PERCENTILES = (50, 90, 95, 99)
_MS = 1000.0


def claimed(requests: int) -> list[int]:
    """Return the percentiles that a number of requests bears."""
    return [q for q in PERCENTILES if requests >= samples_needed(q / 100)]


def unclaimed_text(requests: int) -> str:
    """Name the percentiles that are not claimed; empty if all are."""
    bears = claimed(requests)
    return ", ".join(
        f"p{q} (needs {samples_needed(q / 100)} requests)" for q in PERCENTILES if q not in bears
    )


def metrics(timings: Sequence[Timing], seconds: float, good: int) -> dict[str, dict[str, Any]]:
    """Return every metric of a load, by its name.

    Args:
        timings: the timing of each request.
        seconds: wall-clock time of all together, in seconds.
        good: number of requests within the objective.
    """
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
    values, bears = [_MS * value for value in seconds], claimed(requests)
    shown = {
        f"p{q}": round(percentile(values, q), 3) if values and q in bears else None
        for q in PERCENTILES
    }
    return {"unit": "ms", **_spread(values), **shown}


def _lengths(values: Sequence[int]) -> dict[str, Any]:
    """Lengths are the load itself and no estimate, so that every percentile stands."""
    shown = {f"p{q}": round(percentile(values, q), 1) for q in PERCENTILES} if values else {}
    return {"unit": "tokens", **_spread(values), **shown}
