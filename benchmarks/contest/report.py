"""The outcome of a benchmark, as JSON and as a table."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

# Width of a table that is not printed to a terminal.
FILE_WIDTH = 150

# Metric, and the systems whose medians are divided.
Ratio = tuple[str, str, str]


@dataclass(frozen=True)
class Result:
    """One metric of one system; `value` is the median of its runs."""

    system: str
    version: str
    metric: str
    value: float
    unit: str
    min: float
    max: float
    runs: int


@dataclass(frozen=True)
class NotMeasured:
    """A system that was not measured, the reason, and the ratios that are missing."""

    system: str
    reason: str
    ratios: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """A benchmark's outcome; its fields, in this order, are part of the public contract."""

    bench: str = field(default="", kw_only=True)
    machine: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    workload: Mapping[str, Any]
    results: Sequence[Result]
    ratios: Mapping[str, float]
    not_measured: Sequence[NotMeasured] = ()

    def value(self, system: str, metric: str) -> float | None:
        """Return the median of a metric, None if it was not measured."""
        found = (r.value for r in self.results if (r.system, r.metric) == (system, metric))
        return next(found, None)


def summarise(system: str, version: str, metric: str, values: Sequence[float], unit: str) -> Result:
    """Return one metric over the runs of a system, to five digits: more than any of them has."""
    low, middle, high = (float(f"{f(values):.5g}") for f in (min, median, max))
    return Result(system, version, metric, middle, unit, low, high, len(values))


def ratios_of(results: Sequence[Result], table: Mapping[str, Ratio]) -> dict[str, float]:
    """Return ratios of medians, without those of which a system is missing or the divisor is 0."""
    values = {(result.metric, result.system): result.value for result in results}
    return {
        name: round(values[metric, ours] / values[metric, theirs], 3)
        for name, (metric, ours, theirs) in table.items()
        if (metric, ours) in values and values.get((metric, theirs))
    }


def show(report: Report) -> None:
    """Print a report: a table of metrics by system, the ratios, and what is missing."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    work = ", ".join(f"{name} {value}" for name, value in report.workload.items())
    title = f"{report.bench}: {work}; medians (lowest to highest run)"
    table = Table(title=title, title_justify="left")
    table.add_column("metric", no_wrap=True)
    systems = {r.system: f"{r.system}\n{r.version}" for r in report.results}
    for heading in systems.values():
        table.add_column(heading, justify="right")
    cells = {(r.metric, r.system): _cell(r) for r in report.results}
    for metric, unit in {r.metric: r.unit for r in report.results}.items():
        table.add_row(f"{metric}, {unit}", *(cells.get((metric, name), "") for name in systems))
    console.print(table)
    lines = [f"  {name} = {value:g}" for name, value in report.ratios.items()]
    for missing in report.not_measured:
        without = f" (no {', '.join(missing.ratios)})" if missing.ratios else ""
        lines.append(f"  not measured: {missing.system}: {missing.reason}{without}")
    for line in lines:
        console.print(line, highlight=False, markup=False)


def _cell(result: Result) -> str:
    value, low, high = (
        f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.4g}"
        for v in (result.value, result.min, result.max)
    )
    return value if low == high else f"{value} ({low} to {high})"


def describe() -> dict[str, Any]:
    """Describe this machine: `cores` that this process may use, `gpu` None without one.

    A `load` (running processes over the last minute) above the number of cores means that other
    work used some of them.
    """
    from tuneline.asking.hardware import this_machine

    machine = this_machine()
    return {
        "cpu": machine.cpu,
        "cores": machine.cores,
        "gpu": machine.gpus[0] if machine.gpus else None,
        "memory_gib": machine.memory_gib,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }
