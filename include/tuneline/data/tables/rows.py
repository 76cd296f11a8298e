"""The tables that data steps hand to each other, as Parquet files.

`rows.parquet` holds the rows that are still in, `rejected.parquet` those that a step took out
(raw text, so it lies in quarantine), `audit.parquet` one line of measures per row, without any
text. Their names stand in `tuneline.artifacts.data`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from tuneline.artifacts.data import UNSCRUBBED, audit_of, rejected_of, rows_of
from tuneline.catalogue import data_item_before
from tuneline.errors import UserError
from tuneline.store import open_store

if TYPE_CHECKING:
    import pyarrow as pa

    from tuneline.run import StepContext

Message = dict[str, str]

TRAIN, VALIDATION, HOLDOUT = "train", "validation", "holdout"
SPLITS = (TRAIN, VALIDATION, HOLDOUT)

ROW_COLUMNS = (
    "row_id messages label own_holdout split n_tokens source_file source_line raw stand_ins"
).split()
# As the public contract names them.
DATASET_COLUMNS = "row_id messages split label weight n_tokens source_file source_line".split()
REJECT_COLUMNS = "row_id item reason source_file source_line raw".split()
# Short enough that the texts of a part stay below the two gigabytes of a string array.
_PART_ROWS = 1 << 15


@dataclass(frozen=True, slots=True)
class StandIn:
    """A surrogate that PII scrubbing wrote into a row: characters start to end of one turn."""

    turn: int
    start: int
    end: int
    entity: str


@dataclass(frozen=True, slots=True)
class Row:
    """One example on its way to the training set.

    Attributes:
        row_id: first 16 hex digits of the SHA-256 of the source line; a repeated line gets
            `-2`, `-3`, …, a piece of a split row `#0`, `#1`, ….
        messages: the turns, each `{"role": …, "content": …}`.
        source_file: the file as the configuration names it.
        source_line: its line in that file, from 1; a CSV's header is line 1.
        label: its class, None without one.
        own_holdout: True if it comes from the dataset's own hold-out file.
        split: train, validation or holdout; empty before deduplication.
        n_tokens: tokens of the rendered row, 0 if its turns changed since they were counted.
        raw: the source line, only before scrubbing.
        stand_ins: surrogates in its turns.
    """

    row_id: str
    messages: list[Message]
    source_file: str
    source_line: int
    label: str | None = None
    own_holdout: bool = False
    split: str = ""
    n_tokens: int = 0
    raw: str = ""
    stand_ins: tuple[StandIn, ...] = field(default=())

    @property
    def prompt(self) -> list[Message]:
        """Every turn but the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.messages[-1]["content"]


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


def _schema(names: Iterable[str]) -> pa.Schema:
    import pyarrow as pa

    text = pa.string()
    surrogate = [("turn", pa.int32()), ("start", pa.int32()), ("end", pa.int32()), ("entity", text)]
    types = {
        "messages": pa.list_(pa.struct([("role", text), ("content", text)])),
        "own_holdout": pa.bool_(),
        "weight": pa.float64(),
        "n_tokens": pa.int32(),
        "source_line": pa.int64(),
        "raw": pa.large_string(),
        "stand_ins": pa.list_(pa.struct(surrogate)),
    }
    return pa.schema([(name, types.get(name, text)) for name in names])


def _write(path: Path, names: Sequence[str], entries: Sequence[Any], **more: list[Any]) -> None:
    """Write a table of the attributes `names` of entries; `more` gives columns instead."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: more.get(name) or list(map(attrgetter(name), entries)) for name in names}
    parts = [
        pa.Table.from_pydict(
            {name: values[at : at + _PART_ROWS] for name, values in columns.items()}, _schema(names)
        )
        for at in range(0, max(len(entries), 1), _PART_ROWS)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(parts), path)


def _read(path: Path) -> dict[str, list[Any]]:
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    return columns


def _rows(columns: dict[str, list[Any]]) -> list[Row]:
    return [
        Row(**dict(zip(columns, values, strict=True)))
        for values in zip(*columns.values(), strict=True)
    ]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write `rows.parquet`."""
    rows = list(rows)
    stand_ins = [list(map(asdict, row.stand_ins)) for row in rows]
    _write(path, ROW_COLUMNS, rows, stand_ins=stand_ins)


def read_rows(path: Path) -> list[Row]:
    """Read `rows.parquet`."""
    columns = _read(path)
    columns["stand_ins"] = [
        tuple(StandIn(**stand_in) for stand_in in stand_ins) for stand_ins in columns["stand_ins"]
    ]
    return _rows(columns)


def rows_before(ctx: StepContext) -> list[Row]:
    """Read the rows that the data item before this one kept.

    Raises:
        UserError: it has not been run, or kept none.
    """
    step = data_item_before(ctx.step)
    assert step is not None, f"{ctx.step} is the first data item"
    rows = read_rows(rows_of(step).fetch(ctx))
    if not rows:
        raise UserError(f"{step} kept no rows, so there is nothing for {ctx.step} to work on")
    return rows


def write_dataset(path: Path, rows: Sequence[Row], weights: Sequence[float]) -> None:
    """Write `dataset.parquet`; `weights` holds the loss weight of each row."""
    _write(path, DATASET_COLUMNS, rows, weight=list(weights))


def read_dataset(path: Path) -> tuple[list[Row], list[float]]:
    """Read `dataset.parquet`: its rows and their weights."""
    columns = _read(path)
    weights = columns.pop("weight")
    return _rows(columns), weights


def write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    """Write `rejected.parquet`."""
    _write(path, REJECT_COLUMNS, list(rejects))


def read_rejects(path: Path) -> list[Reject]:
    """Read `rejected.parquet`."""
    import pyarrow.parquet as pq

    return [Reject(**entry) for entry in pq.read_table(path).to_pylist()]


def write_audit(path: Path, columns: dict[str, Any]) -> None:
    """Write `audit.parquet`: equally long columns of measures, by name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)


def write_decisions(
    ctx: StepContext, rows: Sequence[Row], reasons: Sequence[str | None], **measures: Sequence[Any]
) -> int:
    """Write the rows that an item takes out into quarantine, and its audit table.

    Args:
        ctx: the item's context.
        rows: every row that came in.
        reasons: why each row leaves, `code` or `code: detail`; None for a row that stays.
        measures: further columns of the audit table.

    Returns:
        The number of rows that leave.
    """
    left = [(row, reason) for row, reason in zip(rows, reasons, strict=True) if reason]
    raws = _raw_lines(UNSCRUBBED.fetch(ctx), {base_id(row.row_id) for row, _ in left})
    write_rejects(
        rejected_of(ctx.step).path(ctx),
        (
            Reject(
                row.row_id,
                ctx.step,
                reason,
                row.source_file,
                row.source_line,
                raws[base_id(row.row_id)],
            )
            for row, reason in left
        ),
    )
    columns = {
        "row_id": [row.row_id for row in rows],
        "kept": [reason is None for reason in reasons],
        "reason": [reason and reason.split(":", 1)[0] for reason in reasons],
    }
    write_audit(audit_of(ctx.step).path(ctx), {**columns, **measures})
    return len(left)


def _raw_lines(path: Path, row_ids: set[str]) -> dict[str, str]:
    """Return the source lines of some rows by id, from what schema_validation left."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["row_id", "raw"])
    table = table.filter(pc.is_in(table["row_id"], value_set=pa.array(row_ids, pa.string())))
    return dict(zip(table["row_id"].to_pylist(), table["raw"].to_pylist(), strict=True))


def base_id(row_id: str) -> str:
    """Return the id of the source row that a piece `id#k` was split from."""
    return row_id.split("#", 1)[0]


def scrubbed(row: Row, messages: list[Message], stand_ins: tuple[StandIn, ...]) -> Row:
    """Return the row with scrubbed turns and without its source line."""
    counted = row.n_tokens if messages == row.messages else 0
    return replace(row, messages=messages, stand_ins=stand_ins, n_tokens=counted, raw="")


def fetch_dataset(address: str, scratch: Path, title: str = "") -> Path:
    """Bring a `dataset.parquet` to this machine; a local file stays where it is.

    Args:
        address: path, `file://` or `s3://` address.
        scratch: folder for a file from a bucket.
        title: what an error calls it; the address by default.

    Raises:
        UserError: if it does not exist.
        CorruptObject: if its bytes are not those that were written.
        RetryableError: if the server failed.
    """
    parsed = urlparse(address)
    if parsed.scheme == "s3":
        folder, _, name = address.rpartition("/")
        path = scratch / name
        open_store(folder).get_file(name, path)
        return path
    path = Path(unquote(parsed.path) if parsed.scheme == "file" else address)
    if not path.is_file():
        raise UserError(f"{title or address} does not exist; name a dataset.parquet")
    return path
