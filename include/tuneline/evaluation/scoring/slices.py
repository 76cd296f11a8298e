"""Find the parts of the hold-out on which the candidate is clearly worse than on the rest.

A mean over all rows can hide a class that collapsed. Groups by label, quartile of the prompt's
length, language and source are compared with all other rows: one-sided, by Fisher's exact test for
scores of 0 and 1, Mann and Whitney's for others, corrected by Holm's method (1979) over all groups,
so that chance names one in 2 % of the hold-outs at most. It must be `worse_by` as much, too. Rows
that count as one (`independent_groups`) do so in each part that has some of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tuneline.asking.rows import asked
from tuneline.config.evaluation import SlicesConfig
from tuneline.data.conversations.languages import language_of
from tuneline.data.tables.rows import Row
from tuneline.evidence import Measurement, breach_in, measure
from tuneline.plots import printable, save
from tuneline.statistics import wilson

# Chance that a hold-out without a worse part is said to have one.
ALPHA = 0.02
# Named in the evidence's sentence.
NAMED = 3
# Groups on its plot.
DRAWN = 30

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Slice:
    """A group of rows, by `kind` and common `value`: its mean, Wilson's interval, the rest's mean.

    `p_value` is one-sided, for a mean below the rest's, `corrected` after Holm's correction, None
    if it was not judged.
    """

    kind: str
    value: str
    rows: int
    mean: float
    lower: float
    upper: float
    rest: float
    p_value: float
    corrected: float | None = None
    worse: bool = False

    @property
    def gap(self) -> float:
        """By how much its mean lies below that of the rest."""
        return self.rest - self.mean

    def text(self) -> str:
        """Return the slice for a sentence."""
        about = f"{self.mean:.2f} on {self.rows} rows (other rows {self.rest:.2f})"
        return f"{self.kind} {self.value}: {about}"


@dataclass(frozen=True)
class Slices:
    """All groups, the worst first; those too small, and the kinds with all rows in one group."""

    judged: tuple[Slice, ...]
    not_judged: tuple[Slice, ...]
    kinds_alike: tuple[str, ...]

    @property
    def worse(self) -> list[Slice]:
        """The groups that are clearly worse than the rest."""
        return [each for each in self.judged if each.worse]


def groups_of(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return, for each kind of group, the group of each row."""
    texts = [asked(row) for row in rows]
    return {
        "label": [row.label or "without a label" for row in rows],
        "prompt length": _quartiles([len(text) for text in texts]),
        "language": [language_of(text) for text in texts],
        "source": [row.source_file for row in rows],
    }


def _quartiles(lengths: Sequence[int]) -> list[str]:
    """Return the quartile of each length, named by its limits in characters."""
    cuts = sorted({int(cut) for cut in np.quantile(lengths, (0, 0.25, 0.5, 0.75, 1))})
    if len(cuts) == 1:
        return [f"{cuts[0]} characters"] * len(lengths)
    named = {
        high: f"{from_} to {high} characters" if from_ < high else f"{high} characters"
        for from_, high in ((low + (at > 0), high) for at, (low, high) in enumerate(pairwise(cuts)))
    }
    return [named[min(high for high in named if length <= high)] for length in lengths]


def find_slices(
    rows: Sequence[Row], scores: Sequence[float], config: SlicesConfig, together: Sequence[int] = ()
) -> Slices:
    """Compare every group of rows with all other rows; scores are from 0 to 1.

    Args:
        together: the number of each row's group of those that count as one; none if all count.
    """
    groups: list[Slice] = []
    alike = []
    for kind, names in groups_of(rows).items():
        found: dict[tuple[str, int], list[float]] = {}
        for name, number, score in zip(names, together or range(len(rows)), scores, strict=True):
            found.setdefault((name, number), []).append(float(score))
        values = np.array([sum(each) / len(each) for each in found.values()])
        of_value = np.array([name for name, _ in found])
        members = {name: of_value == name for name in sorted(set(names))}
        if len(members) == 1:
            alike.append(kind)
            continue
        groups += (_compared(kind, name, values, inside) for name, inside in members.items())
    large = [each for each in groups if each.rows >= config.min_rows]
    small = [each for each in groups if each.rows < config.min_rows]
    judged = _corrected(large, config.worse_by)
    ordered = sorted(judged, key=lambda each: (not each.worse, each.corrected, -each.gap))
    return Slices(tuple(ordered), tuple(small), tuple(alike))


def _compared(kind: str, name: str, values: Scores, inside: npt.NDArray[np.bool_]) -> Slice:
    """Return a group next to the rest, and the chance that it would be as low as it is."""
    count, rest = int(inside.sum()), round(float(values[~inside].mean()), 4)
    found = wilson(float(values[inside].sum()), count)
    mean, lower, upper = (round(value, 4) for value in (found.value, found.lower, found.upper))
    chance = chance_of(values, inside)
    return Slice(kind, name, count, mean, lower, upper, rest, chance)


def chance_of(values: Scores, inside: npt.NDArray[np.bool_]) -> float:
    """Return how likely a group, drawn at random, has scores as low as those inside."""
    from scipy.stats import hypergeom, mannwhitneyu

    own = values[inside]
    if bool(np.isin(values, (0.0, 1.0)).all()):
        return float(hypergeom.cdf(own.sum(), len(values), int(values.sum()), len(own)))
    return float(mannwhitneyu(own, values[~inside], alternative="less").pvalue)


def _corrected(groups: Sequence[Slice], worse_by: float) -> Iterator[Slice]:
    """Yield the groups with Holm's correction of their p-values."""
    highest = 0.0
    for rank, each in enumerate(sorted(groups, key=lambda each: each.p_value)):
        highest = min(1.0, max(highest, each.p_value * (len(groups) - rank)))
        worse = highest <= ALPHA and each.gap >= worse_by
        yield replace(each, corrected=highest, worse=worse)


def slice_measurements(found: Slices, profile: str) -> list[Measurement]:
    """State how many groups are clearly worse."""
    count, breach = len(found.worse), breach_in(profile)
    return [
        measure("slices_clearly_worse", count, "slices", "<=", 0, on_breach=breach),
        measure("slices_too_small_to_judge", len(found.not_judged), "slices"),
    ]


def slice_sentence(found: Slices) -> str:
    """Name the groups that are clearly worse in a part of a sentence."""
    if not found.judged:
        return "no part of it has enough rows to be judged alone"
    if not found.worse:
        small = f"; {len(found.not_judged)} were too small to judge" if found.not_judged else ""
        return f"none of {len(found.judged)} parts of it is shown to be clearly worse{small}"
    named = "; ".join(each.text() for each in found.worse[:NAMED])
    more = len(found.worse) - NAMED
    return f"clearly worse than the rest: {named}" + (f" and {more} more" if more > 0 else "")


def plot_slices(found: Slices, path: Path) -> None:
    """Draw the mean of each judged group with its interval, the worst on top."""
    from matplotlib.figure import Figure

    shown = found.judged[:DRAWN]
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for at, one in enumerate(shown):
        colour = "#c0392b" if one.worse else "#4878a8"
        axes.plot([one.lower, one.upper], [at, at], color=colour, linewidth=2)
        axes.plot([one.mean], [at], "o", color=colour)
        axes.plot([one.rest], [at], "|", color="#59636e", markersize=12)
    names = [printable(f"{one.kind} {one.value} ({one.rows} rows)", 60) for one in shown]
    axes.set_yticks(range(len(shown)), names, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("score with its interval; a stroke is the score of the other rows")
    axes.grid(axis="x", alpha=0.3)
    save(figure, path)


def slices_document(found: Slices, config: SlicesConfig) -> dict[str, object]:
    """Return the content of `slices.json`."""
    few = f"fewer than {config.min_rows} rows"
    return {
        "correction": "Holm, over all judged slices",
        "alpha": ALPHA,
        "worse_by": config.worse_by,
        "min_rows": config.min_rows,
        "kinds_with_one_value": list(found.kinds_alike),
        "judged": [asdict(each) for each in found.judged],
        "not_judged": [{**asdict(each), "why": few} for each in found.not_judged],
    }
