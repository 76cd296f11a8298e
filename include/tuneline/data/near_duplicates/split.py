"""Split rows into training, validation and hold-out: by cluster, stratified by class, stable.

In each class the clusters are ordered by a hash of their text, and those with the lowest hashes are
held out. The hash of a row never changes, so rows that are added later hardly move any other row
across the split.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.config import DataConfig
from tuneline.data.tables.rows import HOLDOUT, TRAIN, VALIDATION


@dataclass(frozen=True)
class SplitPlan:
    """The number of rows of the hold-out and of validation; the rest is for training."""

    holdout: int
    validation: int


def plan(rows: int, config: DataConfig, *, own_holdout: bool) -> SplitPlan:
    """Plan the number of rows of each split.

    Args:
        rows: number of rows to split, without those of the dataset's own hold-out file.
        config: settings with the shares.
        own_holdout: True if the hold-out is a separate file, so that no rows are split off for it.
    """
    holdout = 0 if own_holdout else _at_least_one(config.holdout_share * rows, rows)
    return SplitPlan(holdout, _at_least_one(config.validation_share * rows, rows - holdout))


def _at_least_one(share: float, available: int) -> int:
    return min(available, max(1, round(share)))


def cluster_hash(text: str) -> str:
    """Return the hash that decides the split of a cluster."""
    return hashlib.sha256(text.encode()).hexdigest()


def assign(labels: Sequence[str | None], hashes: Sequence[str], counts: SplitPlan) -> list[str]:
    """Assign rows to splits.

    Args:
        labels: class of each row.
        hashes: `cluster_hash` of the cluster of each row; rows with equal hashes stay together.
        counts: number of rows of each split, from `plan`.

    Returns:
        The split of each row.
    """
    strata = _strata(labels)
    sizes = {label: len(rows) for label, rows in strata.items()}
    holdout = quotas(sizes, counts.holdout)
    left = {label: size - holdout[label] for label, size in sizes.items()}
    validation = quotas(left, counts.validation)
    splits = [TRAIN] * len(labels)
    placed: dict[str, str] = {}
    for label, rows in sorted(strata.items()):
        for rank, row in enumerate(sorted(rows, key=lambda r: hashes[r])):
            if rank < holdout[label]:
                split = HOLDOUT
            elif rank < holdout[label] + validation[label]:
                split = VALIDATION
            else:
                split = TRAIN
            splits[row] = placed.setdefault(hashes[row], split)
    return splits


def draw(labels: Sequence[str | None], hashes: Sequence[str], total: int) -> set[int]:
    """Draw rows in proportion to their classes, those with the lowest hashes first.

    Args:
        labels: class of each row.
        hashes: hash of each row, which decides in its class.
        total: number of rows to draw.

    Returns:
        The numbers of the drawn rows.
    """
    strata = _strata(labels)
    take = quotas({label: len(rows) for label, rows in strata.items()}, total)
    return {
        row
        for label, rows in strata.items()
        for row in sorted(rows, key=lambda r: (hashes[r], r))[: take[label]]
    }


def _strata(labels: Sequence[str | None]) -> dict[str, list[int]]:
    """Return the rows of each class."""
    strata: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        strata[label or ""].append(row)
    return strata


def quotas(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Apportion `total` to sizes by largest remainders, at most its size to each."""
    everything = sum(sizes.values())
    if everything == 0:
        return dict.fromkeys(sizes, 0)
    total = min(total, everything)
    exact = {name: total * size / everything for name, size in sizes.items()}
    given = {name: int(share) for name, share in exact.items()}
    order = sorted(sizes, key=lambda name: (given[name] - exact[name], name))
    for name in order[: total - sum(given.values())]:
        given[name] += 1
    return given
