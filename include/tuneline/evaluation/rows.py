"""Rows of `dataset.parquet` as evaluation reads them: a prompt and its expected answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.errors import UserError

SPLITS = ("train", "validation", "holdout")


@dataclass(frozen=True)
class Turn:
    """One message."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One conversation; its last turn is the answer that is expected."""

    row_id: str
    messages: tuple[Turn, ...]
    split: str
    label: str | None = None

    @property
    def prompt(self) -> list[dict[str, str]]:
        """The turns before the last answer, as a chat request takes them."""
        return [{"role": turn.role, "content": turn.content} for turn in self.messages[:-1]]

    @property
    def expected(self) -> str:
        """The last answer."""
        return self.messages[-1].content

    @property
    def asked(self) -> str:
        """What the user said, all turns, without the system turn that rows share."""
        return "\n".join(turn.content for turn in self.messages[:-1] if turn.role == "user")


def read_rows(path: Path) -> list[Row]:
    """Read `dataset.parquet`.

    Raises:
        UserError: a column is missing, a split is unknown, or a row does not end in an answer.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    missing = {"row_id", "messages", "split", "label"} - set(table.column_names)
    if missing:
        raise UserError(f"{path.name} has no column {', '.join(sorted(missing))}")
    table = table.select(["row_id", "messages", "split", "label"])
    return [_row(entry, path.name) for entry in table.to_pylist()]


def _row(entry: Mapping[str, Any], where: str) -> Row:
    turns = tuple(Turn(turn["role"], turn["content"]) for turn in entry["messages"])
    if entry["split"] not in SPLITS:
        raise UserError(f"{where}, row {entry['row_id']}: unknown split {entry['split']!r}")
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise UserError(f"{where}, row {entry['row_id']}: its last turn is no answer")
    return Row(str(entry["row_id"]), turns, entry["split"], entry["label"])


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
