"""Rows that a step took out, and the tables in which it says why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.artifacts.data import UNSCRUBBED, audit_of, rejected_of
from tuneline.data.tables import rows as row_tables
from tuneline.data.tables.rows import (
    Row,
    TableWriter,
    base_id,
    chosen_of,
    class_key,
    column_of,
    schema_of,
    write_audit,
)

if TYPE_CHECKING:
    from tuneline.step_context import StepContext

# As the public contract names them.
REJECT_COLUMNS = "row_id item reason source_file source_line raw".split()


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that a step took out; `reason` is `code` or `code: detail`."""

    row_id: str
    item: str
    reason: str
    source_file: str
    source_line: int
    raw: str

    @property
    def code(self) -> str:
        """The reason without its detail."""
        return self.reason.split(":", 1)[0]


def write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    """Write `rejected.parquet`."""
    with TableWriter(path, REJECT_COLUMNS) as table:
        table.write(rejects)


def join_rejects(path: Path, tables: Iterable[Path]) -> None:
    """Write the rows of several `rejected.parquet`, one after the other, as one."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema_of(REJECT_COLUMNS)) as joined:
        for table in tables:
            with pq.ParquetFile(table) as file:
                for batch in file.iter_batches(row_tables.PART_ROWS):
                    joined.write_batch(batch)


def read_rejects(path: Path) -> list[Reject]:
    """Read `rejected.parquet`."""
    import pyarrow.parquet as pq

    return [Reject(**entry) for entry in pq.read_table(path).to_pylist()]


def write_decisions(
    ctx: StepContext, rows: Sequence[Row], reasons: Sequence[str | None], **measures: Sequence[Any]
) -> int:
    """Write an item's rejects and its audit table; return how many rows leave."""
    rejects = (
        Reject(row.row_id, ctx.step, reason, row.source_file, row.source_line, raw)
        for row, reason, raw in _with_raw_lines(UNSCRUBBED.fetch(ctx), rows, reasons)
    )
    with TableWriter(rejected_of(ctx.step).path(ctx), REJECT_COLUMNS) as table:
        table.write(rejects)
    columns = {
        "row_id": column_of(rows, "row_id"),
        "kept": [reason is None for reason in reasons],
        "reason": [reason and reason.split(":", 1)[0] for reason in reasons],
        "class": list(map(class_key, column_of(rows, "label"))),
    }
    write_audit(audit_of(ctx.step).path(ctx), {**columns, **measures})
    return table.rows


def _with_raw_lines(
    path: Path, rows: Sequence[Row], reasons: Sequence[str | None]
) -> Iterator[tuple[Row, str, str]]:
    """Yield each row that leaves, its reason, and its source line as schema_validation left it."""
    import pyarrow.parquet as pq

    told = [reason for reason in reasons if reason is not None]
    if not told:
        return
    leaving = chosen_of(rows, [reason is not None for reason in reasons])
    with pq.ParquetFile(path) as file:
        lines = (
            line
            for batch in file.iter_batches(row_tables.PART_ROWS, columns=["row_id", "raw"])
            for line in zip(batch["row_id"].to_pylist(), batch["raw"].to_pylist(), strict=True)
        )
        row_id, raw = next(lines)
        for row, reason in zip(leaving, told, strict=True):
            while row_id != base_id(row.row_id):
                row_id, raw = next(lines)
            yield row, reason, raw
