"""Estimate the hours, device hours and cost of a training before its first step.

The memory probe also times a few micro-batches of the run, drawn evenly over their sizes, and a
validation pass; the run's order of rows is known, so its tokens are counted, not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneline.catalogue import Size
from tuneline.config import PipelineConfig
from tuneline.evidence import Measurement, measure

# Drift of the speed of a shared machine from minute to minute, which a probe of seconds can't see.
DRIFT = 0.1
HOUR = 3600.0


@dataclass(frozen=True)
class Speed:
    """The times of the probe on one process, in seconds, and real tokens (no padding)."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    validation_tokens: int
    validation_seconds: float
    startup_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Training speed over all timed micro-batches."""
        return sum(self.tokens) / sum(self.seconds)

    @property
    def relative_error(self) -> float:
        """Standard error of the speed, as a share of it (Cochran, Sampling Techniques, 6.3)."""
        count = len(self.tokens)
        if count < 2:
            return 1.0
        pace = sum(self.seconds) / sum(self.tokens)
        residuals = [s - pace * t for s, t in zip(self.seconds, self.tokens, strict=True)]
        return math.sqrt(count / (count - 1) * sum(r * r for r in residuals)) / sum(self.seconds)


@dataclass(frozen=True)
class Work:
    """The work of a run, in steps and real tokens."""

    steps: int
    tokens: int
    validation_tokens: int


@dataclass(frozen=True)
class Estimate:
    """The time and cost that training will take, on all processes together, in seconds.

    Attributes:
        validation_seconds: the part of `seconds` in validation passes.
        uncertainty: half-width of the 95 % range, as a share of `seconds`.
        devices: number of devices in use at once.
        price: price of a device in `currency` (ISO 4217) per hour.
    """

    work: Work
    tokens_per_second: float
    seconds: float
    validation_seconds: float
    uncertainty: float
    devices: int
    device_hours: float
    cost: float
    price: float
    currency: str

    @property
    def hours(self) -> float:
        """Wall-clock time, hours."""
        return self.seconds / HOUR

    def sentence(self) -> str:
        """Return the estimate as a sentence."""
        return (
            f"training will take {duration(self.seconds)} ± {self.uncertainty:.0%} "
            f"({self.work.steps} steps, {self.work.tokens:,} tokens at "
            f"{self.tokens_per_second:,.0f} a second), {self.device_hours:.3g} device hours, "
            f"{money(self.cost, self.currency)}"
        )


def duration(seconds: float) -> str:
    """Return a time span as text."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / HOUR:.1f} hours"


def money(amount: float, currency: str) -> str:
    """Return an amount of money as text."""
    return f"{amount:.{2 if amount >= 0.1 else 4}f} {currency}"


def price_of(config: PipelineConfig) -> float:
    """Return the price of one training device per hour."""
    own = config.training.device_cost_per_hour
    return config.governance.machine_cost_per_hour if own is None else own


def devices_of(config: PipelineConfig) -> int:
    """Return the number of devices that training occupies: GPUs, or machines without GPUs."""
    return config.pods.nodes * max(1, config.pods_of(Size.TRAIN).gpus)


def estimate(work: Work, speed: Speed, config: PipelineConfig) -> Estimate:
    """Estimate a training from the times that the probe measured."""
    processes = config.world_size
    pace = speed.tokens_per_second * processes
    validation = work.validation_tokens * speed.validation_seconds / speed.validation_tokens
    validation /= processes
    seconds = speed.startup_seconds + work.tokens / pace + validation
    devices, price = devices_of(config), price_of(config)
    device_hours = devices * seconds / HOUR
    return Estimate(
        work=work,
        tokens_per_second=pace,
        seconds=seconds,
        validation_seconds=validation,
        uncertainty=math.hypot(2 * speed.relative_error, DRIFT),
        devices=devices,
        device_hours=device_hours,
        cost=device_hours * price,
        price=price,
        currency=config.governance.currency,
    )


def judge(found: Estimate, config: PipelineConfig) -> list[Measurement]:
    """Return the measurements of an estimate with the run's limits."""

    def within(name: str, value: float, unit: str, limit: float | None) -> Measurement:
        noise = round(value * found.uncertainty / 2, 4)
        return measure(
            name, float(f"{value:.4g}"), unit, None if limit is None else "<=", limit, noise=noise
        )

    limits = config.training
    return [
        measure("estimated_steps", found.work.steps, "steps"),
        measure("estimated_tokens", found.work.tokens, "tokens"),
        within("estimated_hours", found.hours, "h", limits.max_hours),
        measure("estimated_device_hours", round(found.device_hours, 4), "h"),
        within("estimated_cost", found.cost, found.currency, limits.max_cost),
        measure("estimate_uncertainty", round(found.uncertainty, 3), "share"),
    ]


def advice(found: Estimate, config: PipelineConfig) -> str:
    """Return the advice for an estimate above a limit, an empty text if it is within."""
    hours, cost = config.training.max_hours, config.training.max_cost
    over = []
    if hours is not None and found.hours > hours:
        over.append(f"training.max_hours {hours:g}")
    if cost is not None and found.cost > cost:
        over.append(f"training.max_cost {cost:g} {found.currency}")
    if not over:
        return ""
    return (
        f"; above {' and '.join(over)}: lower training.epochs, training.max_steps or "
        "data.max_train_rows, train on more or faster devices, or raise the limit"
    )


def compare(planned: Mapping[str, Any], seconds: float, tokens: int) -> dict[str, Any]:
    """Compare the estimate with the seconds and real tokens of the training."""
    share = min(1.0, tokens / planned["work"]["tokens"])
    expected = float(planned["seconds"]) * share
    price_hours = planned["devices"] * seconds / HOUR
    return {
        "estimated_seconds": round(expected, 1),
        "actual_seconds": round(seconds, 1),
        "actual_over_estimated": round(seconds / expected, 3) if expected else None,
        "uncertainty": planned["uncertainty"],
        "device_hours": round(price_hours, 4),
        "cost": round(price_hours * planned["price"], 4),
        "currency": planned["currency"],
    }


def spread_evenly(sizes: Sequence[int], count: int) -> list[int]:
    """Return indices of representative micro-batches: the middles of equal parts by size."""
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i], i))
    count = min(count, len(order))
    return [order[(2 * part + 1) * len(order) // (2 * count)] for part in range(count)]
