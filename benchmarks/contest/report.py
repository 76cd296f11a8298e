"""The outcome of a benchmark, as JSON and as a table."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

# Width of a table that is not printed to a terminal.
FILE_WIDTH = 150


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
    """A benchmark's outcome; the JSON form is part of the public contract.

    Attributes:
        workload: sizes, seed or file of the workload.
        results: every metric of every system.
        ratios: ratios of medians, by the names of the contract.
        machine: description of the machine as the benchmark began, see `describe`.
    """

    workload: Mapping[str, Any]
    results: Sequence[Result]
    ratios: Mapping[str, float]
    not_measured: Sequence[NotMeasured] = ()
    bench: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain types, in the order of the contract."""
        return {
            "bench": self.bench,
            "machine": dict(self.machine),
            "workload": dict(self.workload),
            "results": [asdict(result) for result in self.results],
            "ratios": dict(self.ratios),
            "not_measured": [
                {"system": m.system, "reason": m.reason, "ratios": list(m.ratios)}
                for m in self.not_measured
            ],
        }

    def value(self, system: str, metric: str) -> float | None:
        """Return the median of a metric, None if it was not measured."""
        for result in self.results:
            if (result.system, result.metric) == (system, metric):
                return result.value
        return None


def summarise(system: str, version: str, metric: str, values: Sequence[float], unit: str) -> Result:
    """Return one metric over the runs of a system.

    Args:
        values: one value for each run, at least one.
        unit: unit of the values.
    """
    return Result(
        system,
        version,
        metric,
        _rounded(median(values)),
        unit,
        _rounded(min(values)),
        _rounded(max(values)),
        len(values),
    )


def ratio(results: Sequence[Result], metric: str, ours: str, theirs: str) -> float | None:
    """Return our median over theirs, None if either is missing or theirs is 0."""
    found = {result.system: result.value for result in results if result.metric == metric}
    if ours not in found or not found.get(theirs):
        return None
    return round(found[ours] / found[theirs], 3)


def _rounded(value: float) -> float:
    """Round to five significant digits, more than any of these measurements has."""
    return float(f"{value:.5g}")


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
    units = {r.metric: r.unit for r in report.results}
    for metric, unit in units.items():
        row = [cells.get((metric, system), "") for system in systems]
        table.add_row(f"{metric}, {unit}", *row)
    console.print(table)
    lines = [f"  {name} = {value:g}" for name, value in report.ratios.items()]
    for missing in report.not_measured:
        without = f" (no {', '.join(missing.ratios)})" if missing.ratios else ""
        lines.append(f"  not measured: {missing.system}: {missing.reason}{without}")
    for line in lines:
        console.print(line, highlight=False, markup=False)


def _cell(result: Result) -> str:
    if result.min == result.max:
        return _number(result.value)
    return f"{_number(result.value)} ({_number(result.min)} to {_number(result.max)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def describe() -> dict[str, Any]:
    """Describe the processor, cores, accelerator and memory of this machine, and its load.

    Returns:
        `cpu`, `cores` (those that this process may use), `gpu` (None without one), `memory_gib`,
        `python`, and `load`: the mean number of running processes over the last minute. A load
        above the number of cores means that other work used some of them.
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
