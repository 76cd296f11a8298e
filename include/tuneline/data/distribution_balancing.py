"""Edge cases and common queries are in proportion, and the training set is written.

Training rows only: the hold-out keeps the shares it has. Common classes are sampled down to a
multiple of the median class, rare ones weigh more in the loss (never copied, so that no row is
seen twice as often and none duplicates another). A class is a label; rows without any are put into
groups of similar prompts, which are looked at and, if so configured, balanced. Shares are held
against declared ones where there are any.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuneline.artifacts.data import AUDIT, DATASET, REJECTED
from tuneline.config import DataConfig
from tuneline.data.balance.class_shares import (
    Figures,
    TrainRow,
    caps,
    class_weights,
    edge_cases,
    figures_of,
)
from tuneline.data.balance.prompt_groups import group_prompts
from tuneline.data.near_duplicates.search import similarity_texts
from tuneline.data.near_duplicates.split import cluster_hash, draw
from tuneline.data.tables.rows import (
    HOLDOUT,
    TRAIN,
    VALIDATION,
    Row,
    rows_before,
    write_audit,
    write_dataset,
    write_rejected,
)
from tuneline.evidence import Evidence, Measurement, Verdict, measure

if TYPE_CHECKING:
    from tuneline.run import StepContext

PLOT = "class_shares.png"
UNITS = {"classes": "classes", "smallest_class": "rows", "largest_over_typical": "ratio"}


@dataclass(frozen=True)
class Classes:
    """The class of every row, None without one.

    Attributes:
        names: labels, or names of groups of similar prompts.
        distances: with groups, how far each row is from the middle of its group.
    """

    names: list[str | None]
    distances: list[float] | None = None

    @property
    def grouped(self) -> bool:
        """Whether the classes are groups."""
        return self.distances is not None


def classes_of(rows: Sequence[Row], config: DataConfig) -> Classes:
    """The class of every row: its label, or where no training row has one, its group."""
    if any(row.label is not None for row in rows if row.split == TRAIN):
        return Classes([row.label for row in rows])
    groups = None
    if config.unlabelled != "ignore":
        groups = group_prompts(similarity_texts(rows))
    if groups is None:
        return Classes([None] * len(rows))
    return Classes(list(groups.names), groups.distances)


def balance(
    rows: Sequence[Row], config: DataConfig, classes: Sequence[str | None] | None = None
) -> tuple[list[str | None], list[float]]:
    """Decide what is sampled down and what weighs more.

    Args:
        rows: all rows.
        config: what is done, and how far.
        classes: class of each row; None for its label.

    Returns:
        For each row why it leaves (None when it stays), and its loss weight.
    """
    names = [name or "" for name in classes or [row.label for row in rows]]
    members: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.split == TRAIN:
            members[names[index]].append(index)
    counts = {label: len(indices) for label, indices in members.items()}
    ratio = config.max_class_ratio if config.balancing in ("both", "sample") else None
    stay = caps(counts, ratio, config.max_train_rows, config.min_rows_per_class)
    reasons: list[str | None] = [None] * len(rows)
    for label, indices in members.items():
        if stay[label] == counts[label]:
            continue
        ordered = sorted(indices, key=lambda i: _order(rows[i]))
        for index in ordered[stay[label] :]:
            reasons[index] = f"sampled_down: {counts[label]} rows of its class, {stay[label]} stay"
    _cap_held_out(rows, reasons, sum(counts.values()), config)
    largest = config.max_upsampling if config.balancing in ("both", "weigh") else 1.0
    weights = class_weights(
        {k: v for k, v in stay.items() if v}, largest, config.min_rows_per_class
    )
    return reasons, [
        weights.get(name, 1.0) if row.split == TRAIN and reason is None else 1.0
        for row, name, reason in zip(rows, names, reasons, strict=True)
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
        if total == len(members):
            continue
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


def plot_shares(path: Path, figures: Figures) -> None:
    """Draw the share of each class, and of edge cases, before and after balancing."""
    from matplotlib.figure import Figure

    before, after = figures.before, figures.weighted
    labels = sorted(before, key=lambda label: -before[label])[:40]
    figure = Figure(figsize=(7, 1.2 + 0.28 * len(labels)), layout="constrained")
    axes = figure.subplots()
    sides: tuple[tuple[str, Mapping[str, float], float, str], ...] = (
        ("before", before, figures.edges_before, "#b0b8c0"),
        ("after, weighted", after, figures.edges_after, "#4878a8"),
    )
    for offset, (name, counts, edges, colour) in enumerate(sides):
        total = sum(counts.values()) or 1
        axes.barh(
            [row + 0.4 * offset for row in range(len(labels) + 1)],
            [*(counts.get(label, 0) / total for label in labels), edges],
            height=0.38,
            label=name,
            color=colour,
        )
    shown = [*map(_shown, labels), "edge cases of all classes"]
    axes.set_yticks([row + 0.2 for row in range(len(shown))], shown, parse_math=False)
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
    rows = rows_before(ctx)
    classes = classes_of(rows, config)
    balanced = not classes.grouped or config.unlabelled == "balance"
    reasons, weights = balance(rows, config, classes.names if balanced else [None] * len(rows))
    edges = _edges(rows, classes, config)
    kept = [(r, w) for r, w, reason in zip(rows, weights, reasons, strict=True) if not reason]
    left = [(row, reason) for row, reason in zip(rows, reasons, strict=True) if reason]
    write_dataset(DATASET.path(ctx), [row for row, _ in kept], [weight for _, weight in kept])
    write_rejected(ctx, left)
    columns = {
        "row_id": [row.row_id for row in rows],
        "kept": [reason is None for reason in reasons],
        "reason": [reason and reason.split(":", 1)[0] for reason in reasons],
        "split": [row.split for row in rows],
        "label": [row.label for row in rows],
        "group": classes.names if classes.grouped else [None] * len(rows),
        "edge_case": edges,
        "weight": weights,
    }
    write_audit(ctx.out / AUDIT, columns)
    splits = Counter(row.split for row, _ in kept)
    general = [
        measure("rows_in", len(rows), "rows"),
        measure("rows_kept", len(kept), "rows", ">=", 1),
        measure("rows_lost", len(rows) - len(kept) - len(left), "rows", "==", 0),
        measure("rows_sampled_down", len(left), "rows"),
        *(measure(f"{split}_rows", splits[split], "rows") for split in (VALIDATION, HOLDOUT)),
        measure("holdout_share", splits[HOLDOUT] / max(len(kept), 1), "share"),
        measure("train_rows", splits[TRAIN], "rows", ">=", 1),
    ]
    sizes = {DATASET.name: len(kept), REJECTED: len(left), AUDIT: len(rows)}
    train = [
        TrainRow(name, reason is None, weight, edge is not None)
        for row, name, reason, weight, edge in zip(
            rows, classes.names, reasons, weights, edges, strict=True
        )
        if row.split == TRAIN and name is not None
    ]
    if not train:
        return ctx.conclude(
            "The rows have no classes (no label field, no label column) and are too few, or too "
            "unlike, to be put into groups, so there is nothing to balance.",
            general,
            verdict=Verdict.NOT_APPLICABLE,
            rows=sizes,
        )
    figures = figures_of(train)
    plot_shares(ctx.out / PLOT, figures)
    measurements = [
        *general,
        *_of_classes(figures, config, grouped=classes.grouped),
        *_of_edges(rows, edges),
        measure("largest_weight", max(weights), "weight", "<=", config.max_upsampling),
        measure("classes_from", "groups of prompts" if classes.grouped else "labels", "text"),
        measure("reference", "declared" if config.reference_shares else "none", "text"),
    ]
    return ctx.conclude(_summary(figures, classes, config), measurements, rows=sizes)


def _edges(rows: Sequence[Row], classes: Classes, config: DataConfig) -> list[str | None]:
    """Why each row is an edge case; held-out rows are none."""
    at = [index for index, row in enumerate(rows) if row.split == TRAIN]
    distances = None
    if classes.distances is not None:
        distances = [classes.distances[i] for i in at]
    found = edge_cases(
        [classes.names[i] for i in at],
        [rows[i].n_tokens for i in at],
        distances,
        config.min_rows_per_class,
    )
    edges: list[str | None] = [None] * len(rows)
    for index, reason in zip(at, found, strict=True):
        edges[index] = reason
    return edges


def _of_classes(figures: Figures, config: DataConfig, *, grouped: bool) -> list[Measurement]:
    limits = figures.limits(config, grouped=grouped)
    measurements = []
    for name, value in figures.values(config).items():
        unit = UNITS.get(name, "classes" if name.startswith("effective") else "share")
        held = [(rule, limit) for of, rule, limit in limits if of == name]
        if not held:
            measurements.append(measure(name, value, unit))
        for number, (rule, limit) in enumerate(held):
            called = f"{name}_at_most" if number else name
            measurements.append(measure(called, value, unit, rule, limit, on_breach="warn"))
    return measurements


def _of_edges(rows: Sequence[Row], edges: Sequence[str | None]) -> list[Measurement]:
    counts = Counter(edge for edge in edges if edge is not None)
    return [measure(f"edge_cases_{why}", count, "rows") for why, count in sorted(counts.items())]


def _summary(figures: Figures, classes: Classes, config: DataConfig) -> str:
    values = figures.values(config)
    what = "groups of similar prompts (the rows have no classes)" if classes.grouped else "classes"
    if config.reference_shares and not classes.grouped:
        reference = "held against the declared shares"
    else:
        reference = "no reference shares were declared, so they are held against none"
    return (
        f"{len(figures.after)} {what}, {values['effective_classes']:.1f} effective after balancing "
        f"({values['effective_classes_before']:.1f} before); the smallest has "
        f"{values['smallest_class']} rows; {values['edge_case_share']:.1%} edge cases; {reference}."
    )
