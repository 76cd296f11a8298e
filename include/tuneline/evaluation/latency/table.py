"""Turn request timings into the latency table, its plot and the sentence on hardware."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tuneline.harness.load_client import Timing, errors_of

# Share of a level's requests that must meet the objective for the level to count.
WITHIN = 0.9


@dataclass(frozen=True)
class Objective:
    """The service level: a request is good if both limits, in seconds, hold."""

    max_ttft: float
    max_tpot: float

    def met(self, timing: Timing) -> bool:
        """Return True if a request was answered within both limits."""
        return timing.ok and timing.ttft <= self.max_ttft and timing.tpot <= self.max_tpot

    def text(self) -> str:
        """`TTFT ≤ 2 s, TPOT ≤ 0.2 s`."""
        return f"TTFT ≤ {self.max_ttft:g} s, TPOT ≤ {self.max_tpot:g} s"


@dataclass(frozen=True)
class Level:
    """One row of the table; times in seconds.

    Attributes:
        goodput_per_s: requests per second that met the objective.
        within_share: share of the requests that met the objective.
        batch: mean number of requests in a decoding step by the engine's own counters; less
            than the concurrency if the engine has fewer slots.
        prompt_tokens: mean tokens of a prompt.
        cached_share: share of the prompt tokens that came from the prefix cache.
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
    batch: float
    prompt_tokens: float
    cached_share: float
    errors: tuple[str, ...] = ()

    @property
    def within(self) -> bool:
        """True if enough requests met the objective."""
        return self.within_share >= WITHIN


def percentile(values: Sequence[float], q: float) -> float:
    """Return a percentile, `q` from 0 to 100; NaN of no values."""
    return float(np.percentile(values, q)) if values else math.nan


def summarise(
    concurrency: int, timings: Sequence[Timing], seconds: float, batch: float, goal: Objective
) -> Level:
    """Summarise one concurrency level.

    Args:
        concurrency: requests under way at once.
        timings: the timing of each request, at least one.
        seconds: wall-clock time of the level, in seconds.
        batch: mean requests in a decoding step, as the engine counted.
        goal: the objective.
    """
    done = [timing for timing in timings if timing.ok]
    good = sum(goal.met(timing) for timing in timings)
    ttft = [timing.ttft for timing in done]
    # An answer of one token, or whose text arrived all at once, has no time between tokens.
    tpot = [timing.tpot for timing in done if timing.tpot > 0]
    prompt = sum(timing.prompt_tokens for timing in done)
    return Level(
        concurrency=concurrency,
        requests=len(timings),
        failed=len(timings) - len(done),
        ttft_p50=percentile(ttft, 50),
        ttft_p95=percentile(ttft, 95),
        tpot_p50=percentile(tpot, 50),
        tpot_p95=percentile(tpot, 95),
        tokens_per_s=sum(timing.output_tokens for timing in done) / seconds,
        requests_per_s=len(done) / seconds,
        goodput_per_s=good / seconds,
        within_share=good / len(timings),
        batch=batch,
        prompt_tokens=prompt / max(1, len(done)),
        cached_share=sum(timing.cached_tokens for timing in done) / max(1, prompt),
        errors=tuple(errors_of(timings)),
    )


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
        return f"{machine} does not reach {goal.text()} even for one request at a time"
    top = max(level.concurrency for level in levels)
    line = (
        f"{machine} serves {best.concurrency} requests at once within {goal.text()} "
        f"({best.tokens_per_s:.0f} tokens/s)"
    )
    if top > best.concurrency:
        line += f"; {top} at once need {math.ceil(top / best.concurrency)} such machines"
    return line


def table(levels: Sequence[Level]) -> list[dict[str, Any]]:
    """Return the levels as rows for JSON, rounded; None where nothing was measured."""
    return [{key: _for_json(value) for key, value in asdict(level).items()} for level in levels]


def _for_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return None if math.isnan(value) else round(value, 4)


def plot(levels: Sequence[Level], goal: Objective, path: Path) -> None:
    """Draw TTFT, TPOT and throughput over concurrency to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    at = [level.concurrency for level in levels]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    curves = (
        ("TTFT, s", "ttft_p50", "ttft_p95", goal.max_ttft),
        ("TPOT, s", "tpot_p50", "tpot_p95", goal.max_tpot),
    )
    for axis, (title, median, tail, limit) in zip(axes, curves, strict=False):
        axis.plot(at, [getattr(level, median) for level in levels], "o-", label="p50")
        axis.plot(at, [getattr(level, tail) for level in levels], "s--", label="p95")
        axis.axhline(limit, color="tab:red", linewidth=1, label="objective")
        axis.set_title(title)
    axes[2].plot(at, [level.tokens_per_s for level in levels], "o-", label="tokens/s")
    axes[2].set_title("throughput")
    batch = axes[2].twinx()
    batch.plot(at, [level.batch for level in levels], "^:", color="tab:grey", label="batch")
    batch.set_ylabel("requests per decoding step")
    for axis in axes:
        axis.set_xlabel("concurrent requests")
        axis.set_ylim(bottom=0)
        axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
