"""Find the hold-out rows that an earlier training has seen.

A released model was trained on the rows of its own run, and if that one started from the weights of
a release before it, on the rows of that run too. A hold-out row among them is no test of the
released model, nor of a model that starts from its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.releases import Release, find_version
from tuneline.data.near_duplicates.shingles import normalise
from tuneline.data.tables.rows import Row, read_dataset
from tuneline.errors import UserError
from tuneline.evaluation.holdout.leakage import near_duplicates
from tuneline.harness.rows import asked
from tuneline.step_context import StepContext


@dataclass(frozen=True)
class Seen:
    """The hold-out rows that the trainings behind some weights have seen.

    Attributes:
        ids: ids of the rows.
        unknown: versions whose training rows are no longer in the store.
    """

    ids: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = ()


def seen_by(ctx: StepContext, version: str, held: Sequence[Row]) -> Seen:
    """Find the hold-out rows that a released version has seen, by their text or nearly so.

    Args:
        ctx: the step.
        version: a version of the run's model.
        held: the hold-out rows.
    """
    texts: dict[str, Row] = {}
    unknown = []
    for name, release in _weights_behind(ctx, version):
        rows = None if release is None else _trained_on(release, ctx.scratch / "earlier" / name)
        if rows is None:
            unknown.append(name)
        else:
            texts.update((_text(row), row) for row in rows)
    same = {row.row_id for row in held if _text(row) in texts}
    rest = [row for row in held if row.row_id not in same]
    alike = near_duplicates(rest, list(texts.values()), ctx.config.data.near_duplicate_jaccard)
    return Seen(frozenset(same | {leak.row_id for leak in alike}), tuple(unknown))


def _text(row: Row) -> str:
    return normalise(asked(row))


def _weights_behind(ctx: StepContext, version: str) -> list[tuple[str, Release | None]]:
    """Return a version and those whose weights it started from, None for one that is gone."""
    found: list[tuple[str, Release | None]] = []
    wanted: str | None = version
    while wanted is not None:
        release = find_version(ctx.run.store, ctx.config.name, wanted)
        found.append((wanted, release))
        lora = release.manifest.hyperparameters.get("lora") if release else None
        start = (lora or {}).get("started_from")
        wanted = start["version"] if start else None
    return found


def _trained_on(release: Release, folder: Path) -> list[Row] | None:
    """Return the training and validation rows of a release; None if they are gone."""
    ref = release.artifact(DATASET.step, DATASET.name)
    if ref is None:
        return None
    try:
        rows, _ = read_dataset(release.fetch(ref, folder / DATASET.name))
    except UserError:
        return None
    return rows
