"""The plots of the latency benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneline.evaluation.latency.open_loop import OpenLoop
from tuneline.evaluation.latency.table import Level, Objective


def plot(levels: Sequence[Level], tried: Sequence[OpenLoop], goal: Objective, path: Path) -> None:
    """Draw latency over concurrency, latency over throughput, and the distribution of TTFT.

    Args:
        levels: the closed loops.
        tried: the open loops; without one the distributions are those of the levels.
        goal: the objective.
        path: the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 7.2), layout="constrained")
    _over_concurrency(axes[0][0], levels, "ttft", "TTFT, s", goal.max_ttft)
    _over_concurrency(axes[0][1], levels, "tpot", "TPOT, s", goal.max_tpot)
    _throughput(axes[0][2], levels)
    _curve(axes[1][0], levels, "time_to_first_token", "TTFT p50, s")
    _curve(axes[1][1], levels, "request_latency", "request latency p50, s")
    _distribution(axes[1][2], levels, tried, goal)
    for axis in axes.flat:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _over_concurrency(
    axis: Any, levels: Sequence[Level], name: str, title: str, limit: float
) -> None:
    at = [level.concurrency for level in levels]
    axis.plot(at, [getattr(level, f"{name}_p50") for level in levels], "o-", label="p50")
    tails = [getattr(level, f"{name}_p95") for level in levels]
    # NaN, where it is not claimed, is not drawn.
    if not all(math.isnan(tail) for tail in tails):
        axis.plot(at, tails, "s--", label="p95")
    axis.axhline(limit, color="tab:red", linewidth=1, label="objective")
    axis.set_title(title)
    axis.set_xlabel("concurrent requests")


def _throughput(axis: Any, levels: Sequence[Level]) -> None:
    at = [level.concurrency for level in levels]
    axis.plot(at, [level.tokens_per_s for level in levels], "o-", label="output tokens/s")
    batch = axis.twinx()
    batch.plot(at, [level.batch for level in levels], "^:", color="tab:grey")
    batch.set_ylabel("requests per decoding step (dotted)")
    batch.set_ylim(bottom=0)
    axis.set_title("throughput")
    axis.set_xlabel("concurrent requests")


def _curve(axis: Any, levels: Sequence[Level], metric: str, title: str) -> None:
    """Draw a median, with its interval where it is claimed, over the throughput that went along."""
    drawn = [level for level in levels if level.metrics[metric].get("p50") is not None]
    across = [level.tokens_per_s for level in drawn]
    middle = [level.metrics[metric]["p50"] / 1000 for level in drawn]
    ends = [level.metrics[metric]["intervals"]["p50"] for level in drawn]
    below = [value - low / 1000 for value, (low, _) in zip(middle, ends, strict=True)]
    above = [high / 1000 - value for value, (_, high) in zip(middle, ends, strict=True)]
    axis.errorbar(
        across, middle, yerr=[below, above], fmt="o-", capsize=3, label="median, 95 % interval"
    )
    for level, x, y in zip(drawn, across, middle, strict=True):
        axis.annotate(f" {level.concurrency} at once", (x, y), fontsize="small")
    axis.set_title(f"{title}, over throughput")
    axis.set_xlabel("output tokens/s")


def _distribution(
    axis: Any, levels: Sequence[Level], tried: Sequence[OpenLoop], goal: Objective
) -> None:
    curves = [(f"{run.rate:.3g} requests/s", run.row.first_tokens) for run in tried]
    if not curves:
        curves = [(f"{level.concurrency} at once", level.first_tokens) for level in levels]
    for label, values in curves:
        if values:
            shares = [(place + 1) / len(values) for place in range(len(values))]
            axis.step(values, shares, where="post", label=label)
    axis.axvline(goal.max_ttft, color="tab:red", linewidth=1, label="objective")
    axis.set_title("open loop: share of requests by TTFT" if tried else "share of requests by TTFT")
    axis.set_xlabel("TTFT, s" + (", from the planned arrival" if tried else ""))
