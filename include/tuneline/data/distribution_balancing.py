"""Edge cases and common queries are in proportion, and the training set is written.

Training rows only: the hold-out keeps the shares it has. Common classes are sampled down to a
multiple of the median class, rare ones weigh more in the loss (never copied, so that no row is
seen twice as often and none duplicates another). Shares are held against declared ones where
there are any; the effective number of classes is the exponential of the entropy of the shares
(Hill, "Diversity and evenness", 1973).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tuneline.config import DataConfig
from tuneline.data.split import cluster_hash, draw
from tuneline.data.tables import (
    AUDIT,
    DATASET,
    HOLDOUT,
    REJECTED,
    TRAIN,
    UNSCRUBBED,
    VALIDATION,
    Row,
    read_raws,
    rejects_of,
    rows_of,
    write_audit,
    write_dataset,
    write_rejects,
)
from tuneline.evidence import Evidence, Measurement, Verdict, measure

if TYPE_CHECKING:
    from tuneline.run import StepContext

ITEM = "distribution_balancing"
PLOT = "class_shares.png"
# Fewer effective classes than this share of the classes there are: some hardly count.
MIN_EFFECTIVE_SHARE = 0.5
# Half of the summed differences between shares and declared shares; above it a tenth of the
# training rows would have to change their class.
MAX_REFERENCE_DISTANCE = 0.1


def effective_classes(weights: Mapping[str, float]) -> float:
    """Effective number of classes: exp of the Shannon entropy of their shares."""
    total = sum(weights.values())
    if total <= 0:
        return 0.0
    shares = [weight / total for weight in weights.values() if weight > 0]
    return math.exp(-sum(share * math.log(share) for share in shares))


def typical_size(counts: Mapping[str, int], least: int) -> float:
    """The median size of classes with at least `least` rows, of all where none has so many.

    A tail of classes with a row or two, often misspelt, must not decide how much stays.
    """
    sizes = [count for count in counts.values() if count >= least] or list(counts.values())
    return median(sizes) if sizes else 1


def caps(
    counts: Mapping[str, int], max_ratio: float, max_rows: int | None, least: int = 1
) -> dict[str, int]:
    """How many rows of each class stay.

    First at most `max_ratio` times the typical class, then `max_rows` in all, drawn evenly: each
    class gives up to the same number, the highest that fits.
    """
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
    """Loss weight of each class: what lifts it to the typical class, 1 to `largest`."""
    middle = typical_size(counts, least)
    return {label: min(largest, max(1.0, middle / count)) for label, count in counts.items()}


def balance(rows: Sequence[Row], config: DataConfig) -> tuple[list[str | None], list[float]]:
    """Decide what is sampled down and what weighs more.

    Returns:
        For each row why it leaves (None when it stays), and its loss weight.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.split == TRAIN:
            members[row.label or ""].append(index)
    counts = {label: len(indices) for label, indices in members.items()}
    stay = caps(counts, config.max_class_ratio, config.max_train_rows, config.min_rows_per_class)
    reasons: list[str | None] = [None] * len(rows)
    for label, indices in members.items():
        ordered = sorted(indices, key=lambda i: _order(rows[i]))
        for index in ordered[stay[label] :]:
            reasons[index] = f"sampled_down: {counts[label]} rows of its class, {stay[label]} stay"
    _cap_held_out(rows, reasons, sum(counts.values()), config)
    weights = class_weights(
        {k: v for k, v in stay.items() if v}, config.max_upsampling, config.min_rows_per_class
    )
    return reasons, [
        weights.get(row.label or "", 1.0) if row.split == TRAIN and reason is None else 1.0
        for row, reason in zip(rows, reasons, strict=True)
    ]


def _cap_held_out(
    rows: Sequence[Row], reasons: list[str | None], train_rows: int, config: DataConfig
) -> None:
    """Shrink hold-out and validation with a capped training set, so that shares stay.

    What is left out does not go to training: with a higher cap it would be held out again. A
    hold-out file of the dataset's own shrinks only when `max_holdout_rows` says so.
    """
    scale = 1.0
    if config.max_train_rows is not None and train_rows:
        scale = min(1.0, config.max_train_rows / train_rows)
    for split in (VALIDATION, HOLDOUT):
        members = [index for index, row in enumerate(rows) if row.split == split]
        own = split == HOLDOUT and any(rows[index].own_holdout for index in members)
        total = len(members) if own else min(len(members), max(1, round(scale * len(members))))
        if split == HOLDOUT and config.max_holdout_rows is not None:
            total = min(total, config.max_holdout_rows)
        drawn = draw(
            [rows[index].label for index in members],
            [_order(rows[index]) for index in members],
            total,
        )
        for position, index in enumerate(members):
            if position not in drawn:
                reasons[index] = f"{split}_cap: {total} of {len(members)} rows are used"


def _order(row: Row) -> str:
    """What decides which rows stay: a hash of what is asked, whatever order rows come in."""
    return cluster_hash("\n".join(message["content"] for message in row.messages)) + row.row_id


def reference_distance(shares: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Total variation distance between two distributions over classes, 0 to 1."""
    total, declared = sum(shares.values()), sum(reference.values())
    labels = {*shares, *reference}
    return 0.5 * sum(
        abs(shares.get(label, 0) / total - reference.get(label, 0) / declared) for label in labels
    )


def plot_shares(path: Path, before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """Draw the share of each class before and after balancing."""
    from matplotlib.figure import Figure

    labels = sorted(before, key=lambda label: -before[label])[:40]
    figure = Figure(figsize=(7, 1.2 + 0.28 * len(labels)), layout="constrained")
    axes = figure.subplots()
    for offset, (name, counts, colour) in enumerate(
        (("before", before, "#b0b8c0"), ("after, weighted", after, "#4878a8"))
    ):
        total = sum(counts.values()) or 1
        axes.barh(
            [row + 0.4 * offset for row in range(len(labels))],
            [counts.get(label, 0) / total for label in labels],
            height=0.38,
            label=name,
            color=colour,
        )
    shown = [_shown(label) for label in labels]
    axes.set_yticks([row + 0.2 for row in range(len(labels))], shown, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("share of training rows")
    axes.legend()
    figure.savefig(path, dpi=120)


def _shown(label: str) -> str:
    """A label as the plot can show it: short, in letters that the font has."""
    letters = (c if c.isprintable() and ord(c) < 0x0530 else ascii(c)[1:-1] for c in label[:30])
    return "".join(letters)[:30]


def run(ctx: StepContext) -> Evidence:
    """Balance the training rows and write the training set."""
    config = ctx.config.data
    rows = rows_of(ctx, "token_length_audit")
    reasons, weights = balance(rows, config)
    kept = [(r, w) for r, w, reason in zip(rows, weights, reasons, strict=True) if not reason]
    left = [(row, reason) for row, reason in zip(rows, reasons, strict=True) if reason]
    write_dataset(ctx.out / DATASET, [row for row, _ in kept], [weight for _, weight in kept])
    raws = read_raws(ctx.input("schema_validation", UNSCRUBBED), [row.row_id for row, _ in left])
    rejects = list(rejects_of(left, ITEM, raws))
    write_rejects(ctx.quarantine / Path(REJECTED).name, rejects)
    write_audit(
        ctx.out / AUDIT,
        {
            "row_id": [row.row_id for row in rows],
            "kept": [reason is None for reason in reasons],
            "reason": [reason and reason.split(":", 1)[0] for reason in reasons],
            "split": [row.split for row in rows],
            "label": [row.label for row in rows],
            "weight": weights,
        },
    )
    before = Counter(row.label for row in rows if row.split == TRAIN and row.label is not None)
    counts = Counter(r.label for r, _ in kept if r.split == TRAIN and r.label is not None)
    weighted: dict[str, float] = defaultdict(float)
    for row, weight in kept:
        if row.split == TRAIN and row.label is not None:
            weighted[row.label] += weight
    splits = Counter(row.split for row, _ in kept)
    general = [
        measure("rows_in", len(rows), "rows"),
        measure("rows_kept", len(kept), "rows", ">=", 1),
        measure("rows_lost", len(rows) - len(kept) - len(rejects), "rows", "==", 0),
        measure("rows_sampled_down", len(rejects), "rows"),
        *(measure(f"{split}_rows", splits[split], "rows") for split in (VALIDATION, HOLDOUT)),
        measure("holdout_share", splits[HOLDOUT] / max(len(kept), 1), "share"),
        measure("train_rows", splits[TRAIN], "rows", ">=", 1),
    ]
    sizes = {DATASET: len(kept), REJECTED: len(rejects), AUDIT: len(rows)}
    if not before:
        return ctx.conclude(
            "The rows have no classes (no label field, no label column), so there is nothing to "
            "balance.",
            general,
            verdict=Verdict.NOT_APPLICABLE,
            rows=sizes,
        )
    plot_shares(ctx.out / PLOT, before, weighted)
    measured = _class_measurements(config, before, counts, weighted, weights)
    reference = (
        "against the declared shares"
        if config.reference_shares
        else "no reference shares were declared, so they are held against none"
    )
    return ctx.conclude(
        f"{len(counts)} classes, {effective_classes(weighted):.1f} effective after balancing "
        f"({effective_classes(before):.1f} before); the smallest has {min(counts.values())} rows; "
        f"{reference}.",
        [*general, *measured],
        rows=sizes,
    )


def class_figures(
    config: DataConfig,
    before: Mapping[str, int],
    counts: Mapping[str, int],
    weighted: Mapping[str, float],
) -> dict[str, Any]:
    """What is measured of the classes, with the limits that depend on the data.

    Args:
        config: limits.
        before: training rows of each class before balancing.
        counts: the same after it.
        weighted: summed weights of each class after it.
    """
    return {
        "classes": len(before),
        "effective_classes_before": effective_classes(before),
        "effective_classes": effective_classes(weighted),
        "least_effective": MIN_EFFECTIVE_SHARE * len(before),
        "smallest_class": min(counts.get(label, 0) for label in before),
        "largest_over_typical": max(counts.values())
        / typical_size(counts, config.min_rows_per_class),
        "largest_allowed": math.ceil(config.max_class_ratio),
        "reference_distance": reference_distance(weighted, config.reference_shares)
        if config.reference_shares
        else None,
    }


def _class_measurements(
    config: DataConfig,
    before: Mapping[str, int],
    counts: Mapping[str, int],
    weighted: Mapping[str, float],
    weights: Sequence[float],
) -> list[Measurement]:
    found = class_figures(config, before, counts, weighted)
    measurements = [
        measure("classes", found["classes"], "classes"),
        measure("effective_classes_before", found["effective_classes_before"], "classes"),
        measure(
            "effective_classes",
            found["effective_classes"],
            "classes",
            ">=",
            found["least_effective"],
            on_breach="warn",
        ),
        measure(
            "smallest_class",
            found["smallest_class"],
            "rows",
            ">=",
            config.min_rows_per_class,
            on_breach="warn",
        ),
        measure(
            "largest_over_typical",
            found["largest_over_typical"],
            "ratio",
            "<=",
            found["largest_allowed"],
            on_breach="warn",
        ),
        measure("largest_weight", max(weights), "weight", "<=", config.max_upsampling),
        measure("reference", "declared" if config.reference_shares else "none", "text"),
    ]
    if config.reference_shares:
        measurements.append(
            measure(
                "reference_distance",
                found["reference_distance"],
                "share",
                "<=",
                MAX_REFERENCE_DISTANCE,
                on_breach="warn",
            )
        )
    return measurements
