"""Measure the shares of classes; decide how many rows of each stay, and the weight of each row.

The effective number of classes is that of Hill ("Diversity and evenness", 1973); a value is far out
beyond the fences of Tukey ("Exploratory Data Analysis", 1977).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from tuneline.config import DataConfig
from tuneline.evidence import Rule

# With fewer effective classes than this share of all classes, some hardly count.
MIN_EFFECTIVE_SHARE = 0.5
# Total variation distance from the declared shares: above this, more than a tenth of the training
# rows would have to change their class.
MAX_REFERENCE_DISTANCE = 0.1
# A group of similar prompts with a greater share of the rows crowds out all others, if there are so
# many that it is three times an even share. Nobody declared these groups, so no other limit applies
# to their sizes.
MAX_GROUP_SHARE, FEWEST_GROUPS = 0.6, 5
# A class with fewer rows than this share of the typical one is rare.
RARE = 0.25
# A value is far out if it is this many interquartile ranges above the upper quartile, and at least
# by this factor, which matters if all rows have about the same length.
FENCE, LEAST_FACTOR = 1.5, 2.0


def effective_classes(weights: Mapping[str, float]) -> float:
    """Return the effective number of classes: exp of the Shannon entropy of their shares."""
    total = sum(weights.values())
    if total <= 0:
        return 0.0
    shares = [weight / total for weight in weights.values() if weight > 0]
    return math.exp(-sum(share * math.log(share) for share in shares))


def typical_size(counts: Mapping[str, int], least: int) -> float:
    """Return the median size of classes with at least `least` rows, of all classes if none has.

    A tail of classes with a row or two, often misspelt, must not decide how many rows stay.
    """
    sizes = [count for count in counts.values() if count >= least] or list(counts.values())
    return median(sizes) if sizes else 1


def caps(
    counts: Mapping[str, int], max_ratio: float | None, max_rows: int | None, least: int = 1
) -> dict[str, int]:
    """Return the number of rows of each class that stay.

    First at most `max_ratio` times the typical class stay (all of them if None), then `max_rows` in
    all, drawn evenly: each class gives up to the same number, the highest that fits.
    """
    capped = dict(counts)
    if max_ratio is not None:
        limit = math.ceil(max_ratio * typical_size(counts, least))
        capped = {label: min(count, limit) for label, count in counts.items()}
    if max_rows is None or sum(capped.values()) <= max_rows:
        return capped
    level, left = 0, max_rows
    open_classes = sorted(capped, key=lambda label: (capped[label], label))
    taken: dict[str, int] = {}
    for position, label in enumerate(open_classes):
        level = left // (len(open_classes) - position)
        taken[label] = min(capped[label], level)
        left -= taken[label]
    return taken


def class_weights(counts: Mapping[str, int], largest: float, least: int = 1) -> dict[str, float]:
    """Return the loss weight that lifts each class to the typical class, 1 to `largest`."""
    middle = typical_size(counts, least)
    return {label: min(largest, max(1.0, middle / count)) for label, count in counts.items()}


def reference_distance(shares: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Return the total variation distance between two distributions over classes, 0 to 1."""
    total, declared = sum(shares.values()), sum(reference.values())
    labels = {*shares, *reference}
    return 0.5 * sum(
        abs(shares.get(label, 0) / total - reference.get(label, 0) / declared) for label in labels
    )


def edge_cases(
    classes: Sequence[str | None],
    n_tokens: Sequence[int],
    distances: Sequence[float] | None,
    least: int,
) -> list[str | None]:
    """Return `rare_class`, `long` or `unusual` for each row that is an edge case, else None."""
    counts = Counter(name for name in classes if name is not None)
    rare = RARE * typical_size(counts, least)
    longest = math.exp(_fence([math.log(max(n, 1)) for n in n_tokens], math.log(LEAST_FACTOR)))
    farthest = _fence(distances, 0.0) if distances is not None else math.inf
    found: list[str | None] = []
    for index, name in enumerate(classes):
        if name is not None and counts[name] < rare:
            found.append("rare_class")
        elif n_tokens[index] > longest:
            found.append("long")
        elif distances is not None and distances[index] > farthest:
            found.append("unusual")
        else:
            found.append(None)
    return found


def _fence(values: Sequence[float], least: float) -> float:
    """Return the upper fence of values, at least `least` above their upper quartile."""
    if len(values) < 2:
        return math.inf
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high + max(FENCE * (high - low), least)


@dataclass(frozen=True)
class TrainRow:
    """The measures of a training row, as the audit table holds them."""

    name: str
    kept: bool
    weight: float
    edge: bool


@dataclass(frozen=True)
class Figures:
    """The measures of classes before and after balancing; `weighted` sums their loss weights."""

    before: dict[str, int]
    after: dict[str, int]
    weighted: dict[str, float]
    edges_before: float
    edges_after: float

    def values(self, config: DataConfig) -> dict[str, float]:
        """Return the measured values by name; `reference_distance` only with declared shares."""
        typical = typical_size(self.after, config.min_rows_per_class)
        total = sum(self.weighted.values())
        found = {
            "classes": len(self.before),
            "effective_classes_before": effective_classes(self.before),
            "effective_classes": effective_classes(self.weighted),
            "smallest_class": min(self.after.get(name, 0) for name in self.before),
            "largest_over_typical": max(self.after.values(), default=0) / typical,
            "largest_share": max(self.weighted.values(), default=0.0) / total if total else 0.0,
            "edge_case_share_before": self.edges_before,
            "edge_case_share": self.edges_after,
        }
        if config.reference_shares and total:
            found["reference_distance"] = reference_distance(self.weighted, config.reference_shares)
        return found

    def limits(self, config: DataConfig, *, grouped: bool) -> list[tuple[str, Rule, float]]:
        """Return the limits of the values: name, rule, limit. A breach of any of them warns."""
        limits: list[tuple[str, Rule, float]] = []
        if grouped and len(self.before) >= FEWEST_GROUPS:
            limits.append(("largest_share", "<=", MAX_GROUP_SHARE))
        if not grouped or config.unlabelled == "balance":
            limits += [
                ("effective_classes", ">=", MIN_EFFECTIVE_SHARE * len(self.before)),
                ("smallest_class", ">=", config.min_rows_per_class),
                ("largest_over_typical", "<=", math.ceil(config.max_class_ratio)),
            ]
        if config.edge_case_share is not None:
            low, high = config.edge_case_share
            limits += [("edge_case_share", ">=", low), ("edge_case_share", "<=", high)]
        if config.reference_shares and not grouped:
            limits.append(("reference_distance", "<=", MAX_REFERENCE_DISTANCE))
        return limits


def figures_of(rows: Sequence[TrainRow]) -> Figures:
    """Count training rows by class, before and after balancing."""
    weighted: dict[str, float] = defaultdict(float)
    for row in rows:
        if row.kept:
            weighted[row.name] += row.weight
    kept = sum(weighted.values())
    return Figures(
        Counter(row.name for row in rows),
        Counter(row.name for row in rows if row.kept),
        weighted,
        sum(row.edge for row in rows) / max(len(rows), 1),
        sum(row.weight for row in rows if row.kept and row.edge) / kept if kept else 0.0,
    )
