"""Rows of `dataset.parquet` as evaluation uses them: a prompt and its expected answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuneline.data.tables.rows import SPLITS, Row, read_dataset
from tuneline.errors import UserError
from tuneline.run import StepContext

DATASET_STEP, DATASET = "distribution_balancing", "dataset.parquet"


def dataset_rows(ctx: StepContext) -> list[Row]:
    """The rows of the run's dataset; see `read_rows`."""
    return read_rows(ctx.input(DATASET_STEP, DATASET))


def read_rows(path: Path) -> list[Row]:
    """Read `dataset.parquet`.

    Raises:
        UserError: a split is unknown, or a row does not end in an answer.
    """
    rows, _ = read_dataset(path)
    for row in rows:
        if row.split not in SPLITS:
            raise UserError(f"{path.name}, row {row.row_id}: unknown split {row.split!r}")
        if len(row.messages) < 2 or row.messages[-1]["role"] != "assistant":
            raise UserError(f"{path.name}, row {row.row_id}: its last turn is no answer")
    return rows


def asked(row: Row) -> str:
    """What the user said, all turns, without the system turn that rows share."""
    return "\n".join(turn["content"] for turn in row.prompt if turn["role"] != "system")


def of_split(rows: Sequence[Row], split: str) -> list[Row]:
    """The rows of one split, in order."""
    return [row for row in rows if row.split == split]


def spread(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Draw rows evenly over the labels, the same ones for the same seed.

    Takes a row of each label in turn, rows within a label in an order given by a
    hash of the seed and the row's id, so that adding rows disturbs the draw little.
    """
    from hashlib import sha256

    def order(row: Row) -> str:
        return sha256(f"{seed}:{row.row_id}".encode()).hexdigest()

    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=order):
        groups.setdefault(row.label or "", []).append(row)
    drawn: list[Row] = []
    queues = [groups[label] for label in sorted(groups)]
    while len(drawn) < min(count, len(rows)):
        for queue in queues:
            if queue and len(drawn) < count:
                drawn.append(queue.pop(0))
    return drawn
