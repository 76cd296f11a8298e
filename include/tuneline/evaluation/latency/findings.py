"""Judge what was measured: the levels, the declared load, the limits and the hardware."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tuneline.config.evaluation import LoadConfig
from tuneline.evaluation.latency.loads import Capacity, ClosedLoop, OpenLoop
from tuneline.evaluation.latency.table import Level, Objective, claimed, sustained, unclaimed_text
from tuneline.evidence import Measurement, measure
from tuneline.serving.engines.server import ServedSizes

# The checklist asks for at least four levels.
MIN_LEVELS = 4
# A client that sends a request so much later than planned is too slow for the load, seconds.
MAX_LATE = 0.1


def judge_levels(closed: ClosedLoop, stopped: str, goal: Objective) -> list[Measurement]:
    """Judge the closed loops, the lowest level by its share; `stopped` says why one is missing."""
    levels = closed.levels
    best = sustained(levels)
    within = best.concurrency if best else 0
    peak = max(level.tokens_per_s for level in levels)
    fewest = min(level.requests for level in levels)
    named = ", ".join(f"p{q}" for q in claimed(fewest)) or "none"
    found = [
        measure("levels", len(levels), "levels", ">=", MIN_LEVELS),
        measure("complete", not stopped, "flag", "==", True),
        measure("failed_requests", sum(level.failed for level in levels), "requests", "<=", 0),
        *_judge_share("good_share_at_the_lowest_level", levels[0], goal),
        measure("concurrency_within_objective", within, "requests"),
        measure("peak_tokens_per_s", round(peak, 1), "tokens/s"),
        measure("requests_of_the_smallest_level", fewest, "requests"),
        measure("percentiles_claimed", named, "percentiles"),
        measure("percentiles_not_claimed", unclaimed_text(fewest) or "none", "percentiles"),
    ]
    return [*found, *(each for level in levels for each in _of_level(level))]


def _judge_share(name: str, row: Level, goal: Objective) -> Iterator[Measurement]:
    """Judge the share within the objective by the ends of its exact interval."""
    most, least = round(row.within_upper, 4), round(row.within_lower, 4)
    yield measure(name, round(row.within_share, 4), "share")
    yield measure(f"{name}_at_most", most, "share", ">=", goal.share)
    yield measure(f"{name}_at_least", least, "share", ">=", goal.share, on_breach="inconclusive")


def _of_level(level: Level) -> Iterator[Measurement]:
    at = f"at_{level.concurrency}"
    yield measure(f"ttft_p50_{at}", round(level.ttft_p50, 4), "s")
    yield measure(f"tpot_p50_{at}", round(level.tpot_p50, 4), "s")
    yield measure(f"tokens_per_s_{at}", round(level.tokens_per_s, 1), "tokens/s")
    yield measure(f"goodput_{at}", round(level.goodput_per_s, 3), "requests/s")
    yield measure(f"batch_{at}", round(level.batch, 2), "requests")
    yield measure(f"prompt_tokens_{at}", round(level.prompt_tokens, 1), "tokens")
    latency = level.metrics["request_latency"]
    for q in claimed(level.requests - level.failed):
        if latency.get(f"p{q}") is not None:
            yield measure(f"request_latency_p{q}_{at}", round(latency[f"p{q}"] / 1000, 4), "s")
    for name, value in (("ttft_p95", level.ttft_p95), ("tpot_p95", level.tpot_p95)):
        if not math.isnan(value):
            yield measure(f"{name}_{at}", round(value, 4), "s")


def judge_load(
    load: LoadConfig, tried: Sequence[OpenLoop], capacity: Capacity, goal: Objective
) -> Iterator[Measurement]:
    """Judge the declared load by its open loops (its own rate first); state the servers needed."""
    yield measure("declared_load", load.rate, "requests/s")
    yield measure("sustained_goodput", round(capacity.goodput, 3), "requests/s")
    yield measure("users_per_server", capacity.users, "users")
    if load.rate is None:
        return
    yield measure("replicas_declared", load.replicas, "servers")
    yield measure("replicas_needed", capacity.replicas, "servers")
    if not tried:
        yield measure("good_share_at_load_at_most", None, "share", ">=", goal.share)
        return
    declared = tried[0]
    row = declared.row
    yield measure("load_of_a_server", round(declared.rate, 4), "requests/s")
    yield from _judge_share("good_share_at_load", row, goal)
    yield measure("failed_requests_at_load", row.failed, "requests", "<=", 0)
    yield measure("goodput_at_load", round(row.goodput_per_s, 3), "requests/s")
    yield measure("ttft_p50_at_load", round(row.ttft_p50, 4), "s")
    if not math.isnan(row.ttft_p95):
        yield measure("ttft_p95_at_load", round(row.ttft_p95, 4), "s")
    yield measure("queue_growth_at_load", round(declared.queue_growth, 4), "s/s")
    yield measure("client_late", round(declared.late, 4), "s", "<=", MAX_LATE, on_breach="warn")


def judge_limits(measured: ServedSizes, served: ServedSizes | None) -> Iterator[Measurement]:
    """Compare the limits measured with those that the release serves; None before build_engine."""
    yield measure("served_limits_known", served is not None, "flag")
    if served is None:
        return
    for name, unit in (("parallel", "slots"), ("context_tokens", "tokens"), ("threads", "threads")):
        ours, theirs = getattr(measured, name), getattr(served, name)
        # An engine on a GPU does not state its threads.
        if (ours, theirs) != (None, None):
            yield measure(f"served_{name}", theirs, unit, "==", ours)


def load_line(
    load: LoadConfig, lowest: Level, tried: Sequence[OpenLoop], capacity: Capacity, goal: Objective
) -> str:
    """Say whether the declared load holds, and how many servers it needs."""
    if load.rate is None:
        return (
            "no load is declared (evaluation.load), so only the lowest level decides: "
            f"{lowest.share_text()} were within the objective ({goal.share:.0%} must be)"
        )
    users = f" of {load.users} users" if load.users else ""
    wanted = f"the declared load of {load.rate:.3g} requests/s{users}"
    if not tried:
        return f"{wanted} was not measured"
    declared = tried[0]
    part = f" at one of {load.replicas} servers" if load.replicas > 1 else ""
    row = declared.row
    state = "holds" if declared.holds else "does not hold"
    if not (row.decides(goal) or declared.stopped):
        state = "is undecided"
    line = (
        f"{wanted}{part} {state} with {load.headroom:.0%} headroom: at {declared.rate:.3g} a "
        f"second {row.share_text()} were within the objective ({goal.share:.0%} must be)"
    )
    if not declared.holds and declared.queue_growth > 0:
        line += f", and TTFT grew by {declared.queue_growth:.2g} s each second"
    if capacity.replicas is None:
        return f"{line}; no rate was found that one server can carry"
    servers = "server" if capacity.replicas == 1 else "servers"
    return f"{line}; by its goodput the load needs {capacity.replicas} such {servers}"


def plot(levels: Sequence[Level], tried: Sequence[OpenLoop], goal: Objective, path: Path) -> None:
    """Draw latency over concurrency, latency over throughput, and the distribution of TTFT.

    Without open loops in `tried` the distributions are those of the levels.
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
