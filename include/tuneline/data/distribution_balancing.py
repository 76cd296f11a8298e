"""distribution_balancing: edge cases and common queries are in proportion in the training set.

Common classes are sampled down to a multiple of the median class; rare ones get a greater weight in
the loss and are not copied. Rows without labels are put into groups of similar prompts. The
hold-out keeps its shares. The step writes the dataset that training reads.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tuneline.artifacts.data import AUDIT, DATASET, REJECTED
from tuneline.config import DataConfig
from tuneline.data.balance import class_shares
from tuneline.data.deduplication import holdout_share
from tuneline.data.near_duplicates.compared_text import similarity_texts
from tuneline.data.near_duplicates.split import cluster_hash, draw
from tuneline.data.tables.removed_rows import conclude
from tuneline.data.tables.rows import (
    HOLDOUT,
    TRAIN,
    VALIDATION,
    Row,
    column_of,
    rows_before,
    write_dataset,
    write_decisions,
)
from tuneline.evidence import Evidence, Measurement, Verdict, measure
from tuneline.plots import printable, save

if TYPE_CHECKING:
    from tuneline.step_context import StepContext

# In fewer distinct prompts, groups are chance and would not be found again in other rows.
MIN_TEXTS = 200
# The number of groups grows with the square root of the number of texts, as in the rule of thumb
# sqrt(n / 2), with about twenty texts to learn each from, and at most fifty for people to read.
TEXTS_PER_SQUARE, MAX_GROUPS = 20, 50
# Most texts that the groups are learnt from, and words of each that count: the subject of a prompt
# is in its beginning.
LEARNT_FROM, WORDS = 20_000, 100
# A word in a greater share of texts is not about the subject; one in fewer texts is a name or typo.
MAX_SHARE, MIN_USES = 0.3, 3
FEATURES, DIMENSIONS, SEED = 1 << 14, 50, 0
TERMS = 3


def group_count(texts: int) -> int:
    """Return the number of groups for a number of distinct texts."""
    return max(2, min(MAX_GROUPS, int((texts / TEXTS_PER_SQUARE) ** 0.5)))


def group_prompts(texts: Sequence[str]) -> tuple[list[str], list[float]] | None:
    """Put texts into groups by common words; None for too few texts or no common words.

    Returned are the name of each text's group, and the cosine distance to its middle, 0 to 2.
    """
    from threadpoolctl import threadpool_limits

    distinct = sorted(set(texts), key=cluster_hash)
    if len(distinct) < MIN_TEXTS:
        return None
    with threadpool_limits(1):
        return _grouped(texts, distinct[:LEARNT_FROM], group_count(len(distinct)))


def _grouped(
    texts: Sequence[str], learnt: Sequence[str], count: int
) -> tuple[list[str], list[float]] | None:
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

    def words(text: str) -> list[str]:
        some = text.split()[:WORDS]
        # The numbers of two sums make no subject.
        return [w for w in some if len(w) > 1 and w[0].isalpha() and w not in ENGLISH_STOP_WORDS]

    weigh = TfidfVectorizer(
        analyzer=words,
        max_df=MAX_SHARE,
        min_df=MIN_USES,
        max_features=FEATURES,
        sublinear_tf=True,
        dtype=np.float32,
    )
    try:
        known = weigh.fit_transform(learnt)
    except ValueError:
        # Every word is in too few texts or in too many.
        return None
    dimensions = min(DIMENSIONS, known.shape[1] - 1)
    if dimensions < 2:
        return None
    project = TruncatedSVD(dimensions, n_iter=2, random_state=SEED)
    cluster = MiniBatchKMeans(count, batch_size=4096, n_init=3, max_iter=30, random_state=SEED)
    cluster.fit(_unit(project.fit_transform(known)))
    middles = _unit(cluster.cluster_centers_)
    likeness = _unit(project.transform(weigh.transform(texts))) @ middles.T
    chosen = likeness.argmax(axis=1)
    named = _names(middles @ project.components_, weigh.get_feature_names_out())
    distances = 1 - likeness[np.arange(len(chosen)), chosen]
    return [named[i] for i in chosen.tolist()], distances.astype(float).tolist()


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, 1e-12)


def _names(weights: NDArray[Any], terms: Sequence[str]) -> list[str]:
    """Return the heaviest terms of each group, with a number if two groups have the same."""
    names: list[str] = []
    for row in weights:
        top = np.lexsort((np.arange(len(row)), -row))[:TERMS]
        name = " ".join(str(terms[i]) for i in top)
        names.append(name if name not in names else f"{name} ({len(names)})")
    return names


PLOT = "class_shares.svg"
UNITS = {"classes": "classes", "smallest_class": "rows", "largest_over_typical": "ratio"}


@dataclass(frozen=True)
class Classes:
    """The class of every row, or its group of prompts and the distance to its middle."""

    names: list[str | None]
    distances: list[float] | None = None

    @property
    def grouped(self) -> bool:
        """True if the classes are groups of similar prompts."""
        return self.distances is not None


def classes_of(rows: Sequence[Row], config: DataConfig) -> Classes:
    """Return the class of every row: its label, or its group if no training row has a label."""
    labels, splits = column_of(rows, "label"), column_of(rows, "split")
    if any(
        label is not None and split == TRAIN for label, split in zip(labels, splits, strict=True)
    ):
        return Classes(labels)
    groups = group_prompts(similarity_texts(rows)) if config.unlabelled != "ignore" else None
    return Classes([None] * len(rows)) if groups is None else Classes([*groups[0]], groups[1])


def balance(
    rows: Sequence[Row], config: DataConfig, classes: Sequence[str | None] | None = None
) -> tuple[list[str | None], list[float]]:
    """Return why each row leaves, None if it stays, and its loss weight."""
    names = [name or "" for name in classes or column_of(rows, "label")]
    splits = column_of(rows, "split")
    members: dict[str, list[int]] = defaultdict(list)
    for index, split in enumerate(splits):
        if split == TRAIN:
            members[names[index]].append(index)
    counts = {label: len(indices) for label, indices in members.items()}
    ratio = config.max_class_ratio if config.balancing in ("both", "sample") else None
    stay = class_shares.caps(counts, ratio, config.max_train_rows, config.min_rows_per_class)
    by_ratio = class_shares.caps(counts, ratio, None, config.min_rows_per_class)
    reasons: list[str | None] = [None] * len(rows)
    for label, indices in members.items():
        if stay[label] == counts[label]:
            continue
        ordered = sorted(indices, key=lambda i: _order(rows[i]))
        why = f"{counts[label]} rows of its class, {stay[label]} stay"
        for rank in range(stay[label], counts[label]):
            code = "sampled_down" if rank >= by_ratio[label] else "train_cap"
            reasons[ordered[rank]] = f"{code}: {why}"
    _cap_held_out(rows, reasons, sum(counts.values()), config)
    largest = config.max_upsampling if config.balancing in ("both", "weigh") else 1.0
    weights = class_shares.class_weights(
        {k: v for k, v in stay.items() if v}, largest, config.min_rows_per_class
    )
    return reasons, [
        weights.get(name, 1.0) if split == TRAIN and reason is None else 1.0
        for split, name, reason in zip(splits, names, reasons, strict=True)
    ]


def _cap_held_out(
    rows: Sequence[Row], reasons: list[str | None], train_rows: int, config: DataConfig
) -> None:
    """Shrink validation with a capped training set; the hold-out only where that is asked for."""
    scale = 1.0
    if config.max_train_rows is not None and train_rows:
        scale = min(1.0, config.max_train_rows / train_rows)
    splits, labels = column_of(rows, "split"), column_of(rows, "label")
    # The rows of drifted days stay: on them the model has to be better than the released one.
    drifted = [config.drifted(day) for day in column_of(rows, "day")]
    for split in (VALIDATION, HOLDOUT):
        members = [index for index, other in enumerate(splits) if other == split]
        total = min(len(members), max(1, round(scale * len(members))))
        if split == HOLDOUT:
            total = min(len(members), config.max_holdout_rows or len(members))
        if total == len(members):
            continue
        drawn = draw(
            [labels[index] for index in members],
            ["" if drifted[index] else _order(rows[index]) for index in members],
            total,
        )
        for position, index in enumerate(members):
            if position not in drawn:
                reasons[index] = f"{split}_cap: {total} of {len(members)} rows are used"


def _order(row: Row) -> str:
    """Return the sort key by which rows stay: a hash of the turns, so the order of rows is free."""
    return cluster_hash("\n".join(message["content"] for message in row.messages)) + row.row_id


def plot_shares(path: Path, figures: class_shares.Figures) -> None:
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
    ticks = [*map(printable, labels), "edge cases of all classes"]
    axes.set_yticks([row + 0.2 for row in range(len(ticks))], ticks, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("share of training rows")
    axes.legend()
    save(figure, path)


def _edges(rows: Sequence[Row], classes: Classes, config: DataConfig) -> list[str | None]:
    """Return the reason for which each row is an edge case; held-out rows are not."""
    at = [index for index, row in enumerate(rows) if row.split == TRAIN]
    far = classes.distances
    found = class_shares.edge_cases(
        [classes.names[i] for i in at],
        [rows[i].n_tokens for i in at],
        None if far is None else [far[i] for i in at],
        config.min_rows_per_class,
    )
    edges: list[str | None] = [None] * len(rows)
    for index, reason in zip(at, found, strict=True):
        edges[index] = reason
    return edges


def _of_classes(
    figures: class_shares.Figures, config: DataConfig, *, grouped: bool
) -> list[Measurement]:
    limits = figures.limits(config, grouped=grouped)
    measurements = []
    for name, value in figures.values(config).items():
        unit = UNITS.get(name, "classes" if name.startswith("effective") else "share")
        held = [(rule, limit) for of, rule, limit in limits if of == name]
        if not held:
            measurements.append(measure(name, value, unit))
        for number, (rule, limit) in enumerate(held):
            full = f"{name}_at_most" if number else name
            measurements.append(measure(full, value, unit, rule, limit, on_breach="warn"))
    return measurements


def _left_out(reasons: Iterable[str | None], rows: Sequence[Row], config: DataConfig) -> str:
    """Say how many rows of each split a cap left out; empty if none did."""
    gone = Counter((reason or "").partition(":")[0] for reason in reasons)
    came = Counter(row.split for row in rows)
    named = (
        (TRAIN, "training", f"data.max_train_rows {config.max_train_rows}"),
        (VALIDATION, "validation", "in the same proportion"),
        (HOLDOUT, "hold-out", f"data.max_holdout_rows {config.max_holdout_rows}"),
    )
    said = [
        f"{count} of {came[split]} {title} rows ({by})"
        for split, title, by in named
        if (count := gone[f"{split}_cap"])
    ]
    return f" Left out by a cap: {', '.join(said)}." if said else ""


def _summary(figures: class_shares.Figures, classes: Classes, config: DataConfig) -> str:
    values = figures.values(config)
    what = "groups of similar prompts (the rows have no classes)" if classes.grouped else "classes"
    if config.reference_shares and not classes.grouped:
        reference = "compared with the declared shares"
    else:
        reference = "no reference shares were declared to compare them with"
    return (
        f"{len(figures.after)} {what}, {values['effective_classes']:.1f} effective after balancing "
        f"({values['effective_classes_before']:.1f} before); the smallest has "
        f"{values['smallest_class']} rows; {values['edge_case_share']:.1%} edge cases; {reference}."
    )


def _row_measurements(
    rows: Sequence[Row], stay: Sequence[bool], written: int, left: int
) -> list[Measurement]:
    splits = Counter(row.split for row in compress(rows, stay))
    came = Counter(row.split for row in rows)
    return [
        measure("rows_in", len(rows), "rows"),
        measure("rows_kept", written, "rows", ">=", 1),
        measure("rows_lost", len(rows) - written - left, "rows", "==", 0),
        *(measure(f"{split}_rows", splits[split], "rows") for split in (VALIDATION, HOLDOUT)),
        # Of the rows that came in: a class that is sampled down makes no hold-out too large.
        *holdout_share(came, own=any(row.own_holdout for row in rows)),
        measure("train_rows", splits[TRAIN], "rows", ">=", 1),
    ]


def _write(
    ctx: StepContext, facts: Sequence[Row], rows: Iterable[Row], weights: Iterable[float]
) -> int:
    production = any(row.served_by is not None for row in facts)
    return write_dataset(DATASET.path(ctx), rows, weights, production=production)


def fall_back(ctx: StepContext) -> str:
    """Leave all rows as they came, for a run that goes on although balancing failed."""
    rows = rows_before(ctx)
    facts = rows.facts()
    _write(ctx, facts, rows, [1.0] * len(rows))
    nothing = [None] * len(rows)
    write_decisions(
        ctx,
        rows,
        nothing,
        split=[row.split for row in facts],
        own_holdout=[row.own_holdout for row in facts],
        label=[row.label for row in facts],
        group=nothing,
        edge_case=nothing,
        weight=[1.0] * len(rows),
    )
    return f"{len(rows)} rows go on unbalanced"


def run(ctx: StepContext) -> Evidence:
    """Balance the training rows and write the dataset."""
    config = ctx.config.data
    rows = rows_before(ctx)
    classes = classes_of(rows, config)
    balanced = not classes.grouped or config.unlabelled == "balance"
    reasons, weights = balance(rows, config, classes.names if balanced else [None] * len(rows))
    facts = rows.facts()
    edges = _edges(facts, classes, config)
    stay = [reason is None for reason in reasons]
    written = _write(ctx, facts, compress(rows, stay), compress(weights, stay))
    left = write_decisions(
        ctx,
        rows,
        reasons,
        split=[row.split for row in facts],
        own_holdout=[row.own_holdout for row in facts],
        label=[row.label for row in facts],
        group=classes.names if classes.grouped else [None] * len(rows),
        edge_case=edges,
        weight=weights,
    )
    general, capped = (
        _row_measurements(facts, stay, written, left),
        _left_out(reasons, facts, config),
    )
    sizes = {DATASET.name: written, REJECTED: left, AUDIT: len(rows)}
    columns = zip(facts, classes.names, reasons, weights, edges, strict=True)
    train = [
        class_shares.TrainRow(name, reason is None, weight, edge is not None)
        for row, name, reason, weight, edge in columns
        if row.split == TRAIN and name is not None
    ]
    if not train:
        broken = any(measurement.ok is False for measurement in general)
        return conclude(
            ctx,
            "The rows have no classes (no label field, no label column), and they are too few or "
            f"too different to be put into groups, so there is nothing to balance.{capped}",
            general,
            verdict=None if broken else Verdict.NOT_APPLICABLE,
            rows=sizes,
        )
    figures = class_shares.figures_of(train)
    reasoned = Counter(edge for edge in edges if edge is not None)
    plot_shares(ctx.out / PLOT, figures)
    measurements = [
        *general,
        *_of_classes(figures, config, grouped=classes.grouped),
        *(measure(f"edge_cases_{why}", count, "rows") for why, count in sorted(reasoned.items())),
        measure("largest_weight", max(weights), "weight", "<=", config.max_upsampling),
        measure("reference", "declared" if config.reference_shares else "none", "text"),
    ]
    summary = f"{_summary(figures, classes, config)}{capped}"
    return conclude(ctx, summary, measurements, rows=sizes)
