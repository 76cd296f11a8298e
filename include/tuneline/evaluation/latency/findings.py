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
from tuneline.plots import save
from tuneline.serving.engines.server import ServedSizes

# The checklist asks for at least four levels.
MIN_LEVELS = 4
# A client that sends a request so much later than planned is too slow for the load, seconds.
MAX_LATE = 0.1
# Of the prompts' tokens, beyond what they share with other prompts, that may come from a cache.
_CACHED_BEYOND = 0.05


def judge_levels(closed: ClosedLoop, stopped: str, goal: Objective) -> list[Measurement]:
    """Judge the closed loops, the lowest level by its share; `stopped` says why one is missing."""
    levels = closed.levels
    best = sustained(levels)
    within = best.concurrency if best else 0
    peak = max(level.tokens_per_s for level in levels)
    fewest = min(level.requests for level in levels)
    named = ", ".join(f"p{q}" for q in claimed(fewest)) or "none"
    return [
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


def _judge_share(name: str, row: Level, goal: Objective) -> Iterator[Measurement]:
    """Judge the share within the objective by the ends of its exact interval."""
    most, least = round(row.within_upper, 4), round(row.within_lower, 4)
    yield measure(name, round(row.within_share, 4), "share")
    yield measure(f"{name}_at_most", most, "share", ">=", goal.share)
    yield measure(f"{name}_at_least", least, "share", ">=", goal.share, on_breach="inconclusive")


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
    yield measure("queue_growth_at_load", round(declared.queue_growth, 4), "s/s")
    cached, most = round(row.cached_share, 4), round(declared.shared + _CACHED_BEYOND, 4)
    yield measure("cached_share_at_load", cached, "share", "<=", most, on_breach="inconclusive")
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


def plot(levels: Sequence[Level], goal: Objective, path: Path) -> None:
    """Draw latency and throughput over concurrency."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    axes = figure.subplots(1, 3)
    _over_concurrency(axes[0], levels, "ttft", "TTFT, s", goal.max_ttft)
    _over_concurrency(axes[1], levels, "tpot", "TPOT, s", goal.max_tpot)
    _throughput(axes[2], levels)
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.legend(fontsize="small")
    save(figure, path)


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
