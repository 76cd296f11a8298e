"""A picture of a watch: the evidence of each signal by night, and the night that drift began."""

from __future__ import annotations

import math
from pathlib import Path

from tuneline.governance.drift.watch import DriftReport

# A p-value of 0 has no logarithm.
_SMALLEST = 1e-30


def draw(report: DriftReport, path: Path) -> None:
    """Write the plot of a report.

    Args:
        report: a report of at least one night.
        path: file to write; its ending (.svg or .png) is the format.
    """
    # Not pyplot: it keeps figures alive and looks for a display.
    from matplotlib.figure import Figure

    nights = report.state.history
    days = [entry.day or "undated" for entry in nights]
    figure = Figure(figsize=(9, 1.6 * len(report.measures) + 0.8), layout="constrained")
    axes = figure.subplots(len(report.measures), 1, sharex=True, squeeze=False)[:, 0]
    for axis, measure in zip(axes, report.measures, strict=True):
        seen = [
            (at, -math.log10(max(entry.p_values[measure.name], _SMALLEST)))
            for at, entry in enumerate(nights)
            if measure.name in entry.p_values
        ]
        colour = "tab:red" if measure.drifted else "tab:blue"
        axis.plot(*zip(*seen, strict=True), color=colour, marker="o", markersize=3)
        axis.axhline(-math.log10(measure.limit), color="grey", linestyle="--", linewidth=0.8)
        if measure.since in days:
            axis.axvline(days.index(measure.since), color="tab:red", linewidth=0.8)
        since = f", since {measure.since}" if measure.since else ""
        axis.set_title(f"{measure.name}{since}", loc="left", fontsize=9)
        axis.set_ylabel("-log10 p", fontsize=8)
    step = max(1, len(days) // 12)
    axes[-1].set_xticks(range(0, len(days), step), days[::step], rotation=30, fontsize=8)
    figure.savefig(path)
