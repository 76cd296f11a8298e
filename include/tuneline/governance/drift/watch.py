"""Compare days of production with a reference, night after night.

The state is small and plain JSON. It belongs to one released model: a new model starts anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from tuneline.governance.drift import signals
from tuneline.governance.drift.bets import YEAR, Wealth
from tuneline.governance.drift.prompts import UNDATED, Days
from tuneline.governance.drift.reference import SHARES, Night, Reference
from tuneline.governance.drift.signals import MOST_DRIVERS, Driver, Look
from tuneline.plots import save

# Characters of a prompt that a report shows.
_EXCERPT = 160


@dataclass(frozen=True)
class NightEntry:
    """One night in the history of a watch."""

    day: str
    prompts: int
    without_text: int  # whose text was not logged
    values: dict[str, float]
    p_values: dict[str, float]  # anytime-valid, up to this night


class WatchState(BaseModel, frozen=True, populate_by_name=True):
    """What one night hands to the next."""

    schema_: Literal["tuneline/drift-state/1"] = Field("tuneline/drift-state/1", alias="schema")
    wealth: dict[str, Wealth] = {}
    first: dict[str, tuple[int, int]] = {}  # of the first nights
    history: tuple[NightEntry, ...] = ()  # up to a year

    def as_dict(self) -> dict[str, Any]:
        """Return the state as plain types."""
        return self.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True)
class Measure:
    """One signal against its limit."""

    name: str
    value: float  # in the last night that it was looked at
    p_value: float  # anytime-valid, the smallest of the year
    limit: float  # its share of the false alarms of a year
    since: str | None  # the change-point estimate, None without drift

    @property
    def drifted(self) -> bool:
        """True if the measure calls drift."""
        return self.p_value < self.limit

    def as_dict(self) -> dict[str, Any]:
        """Return the measure as `tuneline drift --json` prints it."""
        return {
            "name": self.name,
            "value": round(self.value, 6),
            "p_value": float(f"{self.p_value:.4g}"),
            "limit": float(f"{self.limit:.4g}"),
            "drifted": self.drifted,
            "since": self.since,
        }


@dataclass(frozen=True)
class DriftReport:
    """The outcome of a comparison."""

    measures: tuple[Measure, ...]
    drivers: Mapping[str, list[Driver]]  # of these days, by signal that drifted
    prompts: int
    without_text: int
    state: WatchState

    @property
    def drifted(self) -> bool:
        """True if any measure calls drift."""
        return any(measure.drifted for measure in self.measures)

    @property
    def since(self) -> str | None:
        """The day on which drift began, None if nothing drifted or days are not known."""
        days = [m.since for m in self.measures if m.drifted and m.since]
        return min(days) if days else None

    def as_dict(self) -> dict[str, Any]:
        """Return the report as `tuneline drift --json` prints it."""
        return {
            "drifted": self.drifted,
            "since": self.since,
            "measures": [measure.as_dict() for measure in self.measures],
            "prompts": self.prompts,
            "without_text": self.without_text,
            "drivers": {
                name: [{**asdict(d), "text": d.text and d.text[:_EXCERPT]} for d in found]
                for name, found in self.drivers.items()
            },
            "nights": [asdict(entry) for entry in self.state.history],
        }


def compare(reference: Reference, days: Days, state: WatchState | None = None) -> DriftReport:
    """Compare days of production with the reference.

    Each day is one look; looking again at a day that `state` has would count it twice.
    """
    before = WatchState.model_validate(state.as_dict() if state else {})
    wealth, first, history = before.wealth, before.first, list(before.history)
    seen: list[dict[str, Look]] = []
    for day, prompts in sorted(days.items()):
        looks = dict(look(reference, reference.night(day, prompts), first))
        for name, found in looks.items():
            wealth.setdefault(name, Wealth()).bet(found.log_e, found.tally, found.test, day)
        seen.append(looks)
        values = {name: round(found.value, 6) for name, found in looks.items()}
        p_values = {name: float(f"{wealth[name].p_value:.4g}") for name in looks}
        silent = sum(prompt.text is None for prompt in prompts)
        history.append(NightEntry(day, len(prompts), silent, values, p_values))
    texts = [prompt.text for prompts in days.values() for prompt in prompts]
    last = {name: value for night in history for name, value in night.values.items()}
    measures = []
    for name in (name for name in SHARES if name in wealth):
        p_value, limit = float(wealth[name].p_value), reference.limit(name)
        since = wealth[name].since if p_value < limit else None
        since = None if since == UNDATED else since
        measures.append(Measure(name, last.get(name, 0.0), p_value, limit, since))
    return DriftReport(
        tuple(measures),
        {m.name: _drivers(seen, m) for m in measures if m.drifted},
        len(texts),
        texts.count(None),
        WatchState(wealth=wealth, first=first, history=tuple(history[-YEAR:])),
    )


def look(
    reference: Reference, night: Night, first: dict[str, tuple[int, int]]
) -> Iterator[tuple[str, Look]]:
    """Yield what every signal that has data sees in a night, the slowest signal last."""
    for name in signals.TOLERANCES:
        if (found := signals.counted(reference, night, name, first)) is not None:
            yield name, found
    for name, see in signals.TEXT_SIGNALS.items():
        if (found := see(reference, night)) is not None:
            yield name, found


def _drivers(seen: list[dict[str, Look]], measure: Measure) -> list[Driver]:
    """Return the strongest drivers since the drift began, the days in turn."""
    found = [looks[measure.name].drivers for looks in seen if measure.name in looks]
    ranked = [driver for in_turn in zip_longest(*found) for driver in in_turn if driver]
    return [d for d in ranked if d.day >= (measure.since or "")][:MOST_DRIVERS]


# A p-value of 0 has no logarithm.
_SMALLEST = 1e-30


def draw(report: DriftReport, path: Path) -> None:
    """Write the plot of a report."""
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
    save(figure, path)
