"""Accesses to a hold-out outside of the steps, recorded by hand; and the list of all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneline.artifacts.data import DATASET
from tuneline.data.tables.rows import HOLDOUT, read_dataset
from tuneline.errors import UserError
from tuneline.evaluation.holdout.ledger import (
    Access,
    Purpose,
    holdout_sha256,
    open_holdout,
    read_ledger,
)
from tuneline.harness.rows import of_split
from tuneline.people.terminal import this_user
from tuneline.run import Run
from tuneline.step_context import StepContext


def record_access(run_uri: str, purpose: Purpose, note: str) -> int:
    """Record that somebody used the hold-out of a run.

    Args:
        run_uri: the run.
        purpose: what it was used for.
        note: what was chosen, or looked at.

    Returns:
        The number of accesses before this one.

    Raises:
        UserError: if there is no such run, its dataset is not made, or it has no hold-out.
    """
    with _context(run_uri) as ctx:
        opened = open_holdout(ctx, purpose, "", by=this_user(), note=note)
        if not opened.held:
            raise UserError(f"the dataset of {run_uri} has no hold-out row")
        return len(opened.earlier)


def accesses_of(run_uri: str) -> list[Access]:
    """Return the accesses to the hold-out of a run, oldest first; this is none."""
    with _context(run_uri) as ctx:
        rows, _ = read_dataset(DATASET.fetch(ctx), holdout=True)
        return read_ledger(ctx.run.store, holdout_sha256(of_split(rows, HOLDOUT)))


@contextmanager
def _context(run_uri: str) -> Iterator[StepContext]:
    """Return the surroundings of a step that leaves nothing but its entry in the ledger."""
    run = Run.open(run_uri)
    with tempfile.TemporaryDirectory(prefix="tuneline-holdout-") as folder:
        place = Path(folder)
        yield StepContext(run, "by hand", out=place, quarantine=place, scratch=place)
