"""The tables that data steps hand to each other, as Parquet files.

`rows.parquet` holds the rows that are still in, `rejected.parquet` those that a step took out (raw
text, so it lies in quarantine), `audit.parquet` measures of each row, without any text.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from itertools import compress, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from tuneline.artifacts.data import UNSCRUBBED, audit_of, rejected_of, rows_of
from tuneline.catalogue import data_item_before
from tuneline.errors import UserError
from tuneline.store import local_file

if TYPE_CHECKING:
    import pyarrow as pa

    from tuneline.step_context import StepContext

# Rows that are in memory at once, and in a row group of a table.
PART_ROWS = 1 << 12


def schema_of(names: Iterable[str]) -> pa.Schema:
    """Return the schema of a table with these columns."""
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


class TableWriter:
    """Write the attributes `names` of entries to a Parquet table, part by part."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        self._names = names
        self._schema = schema_of(names)
        self._file = pq.ParquetWriter(path, self._schema)
        self.rows = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.rows:
            self._write([], {})
        self._file.close()

    def write(self, entries: Iterable[Any], **more: Iterable[Any]) -> None:
        """Add entries, of which one part at a time is held; `more` gives columns instead."""
        entries = iter(entries)
        columns = {name: iter(values) for name, values in more.items()}
        while part := list(islice(entries, PART_ROWS)):
            self._write(part, {n: list(islice(v, len(part))) for n, v in columns.items()})

    def _write(self, part: Sequence[Any], more: Mapping[str, list[Any]]) -> None:
        import pyarrow as pa

        columns = {
            name: more[name] if name in more else list(map(attrgetter(name), part))
            for name in self._names
        }
        if "stand_ins" in columns:
            columns["stand_ins"] = [list(map(asdict, spans)) for spans in columns["stand_ins"]]
        self._file.write_table(pa.Table.from_pydict(columns, self._schema))
        self.rows += len(part)


Message = dict[str, str]

TRAIN, VALIDATION, HOLDOUT = "train", "validation", "holdout"
SPLITS = (TRAIN, VALIDATION, HOLDOUT)

ROW_COLUMNS = (
    "row_id messages label own_holdout split n_tokens source_file source_line raw stand_ins "
    "conversation served_by day"
).split()
# As the public contract names them.
DATASET_COLUMNS = "row_id messages split label weight n_tokens source_file source_line".split()


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

    `row_id` is the first 16 hex digits of the SHA-256 of the source line; a repeated line gets
    `-2`, `-3`, …, a piece of a split row `#0`, `#1`, …. Lines count from 1, a CSV's header being
    line 1. `split` is empty before deduplication, `n_tokens` 0 if the turns changed since they were
    counted, `raw` empty after scrubbing. `served_by` is the model that answered a request of
    production, None for other rows: a client wrote the turns before its answer, so that the last
    answer alone is learned, and a person saw that model's answer. `day` is the day of that request.
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
    conversation: str | None = None
    served_by: str | None = None
    day: str | None = None

    @property
    def prompt(self) -> list[Message]:
        """Every turn but the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.messages[-1]["content"]


# Rows read by number that stay at hand; those of one cluster are asked for several times.
_AT_HAND = 1024


def _rows(columns: dict[str, list[Any]]) -> list[Row]:
    if "stand_ins" in columns:
        spans = [tuple(StandIn(**span) for span in row) for row in columns["stand_ins"]]
        columns = {**columns, "stand_ins": spans}
    rows = zip(*columns.values(), strict=True)
    return [Row(**dict(zip(columns, values, strict=True))) for values in rows]


class StoredRows(Sequence[Row]):
    """The rows of a table on disk, one part at a time in memory.

    Reading in order costs as much as a list; each access by number reads one row, and the last ones
    stay at hand. The rows are laid out once more next to the table, in a form that is mapped.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq
        from pyarrow import ipc

        mapped = path.with_suffix(".arrow")
        with pq.ParquetFile(path) as file:
            known = {field.name for field in fields(Row)}
            schema = pa.schema([field for field in file.schema_arrow if field.name in known])
            with ipc.new_file(mapped, schema) as layout:
                for batch in file.iter_batches(PART_ROWS, columns=schema.names):
                    layout.write_batch(batch.cast(schema))
        with pa.memory_map(str(mapped)) as source:
            self._table = ipc.open_file(source).read_all()
        mapped.unlink()
        self._one = lru_cache(maxsize=_AT_HAND)(lambda number: self._cut(number, number + 1)[0])

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[Row]:
        for batch in self._table.to_batches():
            yield from _rows(batch.to_pydict())

    @overload
    def __getitem__(self, at: int) -> Row: ...

    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...

    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            assert step == 1, "stored rows are cut into adjacent parts"
            return self._cut(start, stop)
        number = at + len(self) if at < 0 else at
        if not 0 <= number < len(self):
            raise IndexError(at)
        return self._one(number)

    def _cut(self, start: int, stop: int) -> list[Row]:
        return _rows(self._table.slice(start, max(0, stop - start)).to_pydict())

    def chosen(self, flags: Sequence[int]) -> Iterator[Row]:
        """Yield the rows whose flag is not 0, of which no others are read."""
        import numpy as np
        import pyarrow as pa

        start, mask = 0, np.frombuffer(bytes(flags), dtype=bool)
        for batch in self._table.to_batches():
            inside = mask[start : start + batch.num_rows]
            if inside.any():
                yield from _rows(batch.filter(pa.array(inside)).to_pydict())
            start += batch.num_rows

    def facts(self) -> list[Row]:
        """Return all rows without their turns and source lines."""
        gone = {"messages", "raw", "stand_ins"} & {*self._table.column_names}
        return _rows(
            {**self._table.drop_columns([*gone]).to_pydict(), "messages": [[]] * len(self)}
        )

    def column(self, name: str) -> list[Any]:
        """Return one column, a value for each row; None where an earlier version wrote none."""
        known = name in self._table.column_names
        values: list[Any] = self._table[name].to_pylist() if known else [None] * len(self)
        return values


def chosen_of(rows: Sequence[Row], flags: Sequence[int]) -> Iterable[Row]:
    """Return the rows whose flag is not 0, in their order."""
    return rows.chosen(flags) if isinstance(rows, StoredRows) else compress(rows, flags)


def with_stand_ins(rows: Sequence[Row]) -> Iterable[Row]:
    """Return the rows that hold surrogates, of which no others are read."""
    return chosen_of(rows, list(map(bool, column_of(rows, "stand_ins"))))


def surrogates_of(rows: Sequence[Row]) -> dict[str, list[tuple[str, str]]]:
    """Return the surrogates in scrubbed rows by row id: entity and value of each."""
    return {
        row.row_id: [
            (s.entity, row.messages[s.turn]["content"][s.start : s.end]) for s in row.stand_ins
        ]
        for row in with_stand_ins(rows)
    }


def column_of(rows: Sequence[Row], name: str) -> list[Any]:
    """Return an attribute of all rows."""
    if isinstance(rows, StoredRows):
        return rows.column(name)
    return list(map(attrgetter(name), rows))


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write `rows.parquet`; return the number of rows."""
    with TableWriter(path, ROW_COLUMNS) as table:
        table.write(rows)
    return table.rows


def read_rows(path: Path) -> list[Row]:
    """Read `rows.parquet`."""
    import pyarrow.parquet as pq

    return _rows(pq.read_table(path).to_pydict())


def rows_before(ctx: StepContext) -> StoredRows:
    """Return the rows that the item before kept; UserError if it kept none, or was not run."""
    step = data_item_before(ctx.step)
    assert step is not None, f"{ctx.step} is the first data item"
    rows = StoredRows(rows_of(step).fetch(ctx))
    if not rows:
        raise UserError(f"{step} kept no rows, so there is nothing for {ctx.step} to work on")
    return rows


def write_dataset(
    path: Path, rows: Iterable[Row], weights: Iterable[float], *, production: bool = False
) -> int:
    """Write `dataset.parquet`, with the loss weight of each row; return the number of rows.

    The columns `served_by` and `day` are there if some rows are of `production`.
    """
    with TableWriter(path, DATASET_COLUMNS + ["served_by", "day"] * production) as table:
        table.write(rows, weight=weights)
    return table.rows


def read_dataset(path: Path, *, holdout: bool = False) -> tuple[list[Row], list[float]]:
    """Read `dataset.parquet`: its rows and their weights, without the hold-out by default.

    A step that judges or trains a model takes it from `evaluation.scoring.ledger.open_holdout`,
    which records that it did.
    """
    import pyarrow.parquet as pq

    wanted = None if holdout else [("split", "!=", HOLDOUT)]
    columns: dict[str, list[Any]] = pq.read_table(path, filters=wanted).to_pydict()
    weights = columns.pop("weight")
    return _rows(columns), weights


def stored_dataset(path: Path) -> tuple[StoredRows, list[float]]:
    """Return the rows of `dataset.parquet`, read as they are asked for, and their weights."""
    import pyarrow.parquet as pq

    return StoredRows(path), pq.read_table(path, columns=["weight"])["weight"].to_pylist()


def write_audit(path: Path, columns: dict[str, Any]) -> None:
    """Write `audit.parquet`: equally long columns of measures, by name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)


@lru_cache(maxsize=4096)
def class_key(label: str | None) -> str | None:
    """Return the key of a class in an audit table, which holds no text; None without one."""
    if label is None:
        return None
    return hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def base_id(row_id: str) -> str:
    """Return the id of the source row that a piece `id#k` was split from."""
    return row_id.split("#", 1)[0]


def scrubbed(row: Row, messages: list[Message], stand_ins: tuple[StandIn, ...]) -> Row:
    """Return the row with scrubbed turns and without its source line."""
    same = messages == row.messages
    if same and stand_ins == row.stand_ins and not row.raw:
        return row
    counted = row.n_tokens if same else 0
    return replace(row, messages=messages, stand_ins=stand_ins, n_tokens=counted, raw="")


def fetch_dataset(address: str, scratch: Path, title: str = "") -> Path:
    """Bring a `dataset.parquet` to this machine; UserError if it does not exist."""
    path = local_file(address, scratch)
    if not path.is_file():
        raise UserError(f"{title or address} does not exist; name a dataset.parquet")
    return path


_Item = TypeVar("_Item")


class Spool(Generic[_Item]):
    """Batches of objects in a scratch file, written once and read in order, any number of times."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._path.write_bytes(b"")
        self._batches = 0

    def add(self, batch: Sequence[_Item]) -> None:
        """Add a batch."""
        with self._path.open("ab") as file:
            pickle.dump(batch, file, protocol=pickle.HIGHEST_PROTOCOL)
        self._batches += 1

    def __iter__(self) -> Iterator[Sequence[_Item]]:
        with self._path.open("rb") as file:
            for _ in range(self._batches):
                yield pickle.load(file)  # noqa: S301 - written by this process


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


def join_rejects(path: Path, tables: Iterable[Path]) -> None:
    """Write the rows of several `rejected.parquet`, one after the other, as one."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema_of(REJECT_COLUMNS)) as joined:
        for table in tables:
            with pq.ParquetFile(table) as file:
                for batch in file.iter_batches(PART_ROWS):
                    joined.write_batch(batch)


def read_rejects(path: Path) -> list[Reject]:
    """Read `rejected.parquet`."""
    import pyarrow.parquet as pq

    return [Reject(**entry) for entry in pq.read_table(path).to_pylist()]


def write_decisions(
    ctx: StepContext, rows: Sequence[Row], reasons: Sequence[str | None], **measures: Sequence[Any]
) -> int:
    """Write an item's rejects and its audit table; return how many rows leave."""
    with TableWriter(rejected_of(ctx.step).path(ctx), REJECT_COLUMNS) as table:
        table.write(_rejects(ctx, rows, reasons))
    columns = {
        "row_id": column_of(rows, "row_id"),
        "kept": [reason is None for reason in reasons],
        "reason": [reason and reason.split(":", 1)[0] for reason in reasons],
        "class": list(map(class_key, column_of(rows, "label"))),
    }
    write_audit(audit_of(ctx.step).path(ctx), {**columns, **measures})
    return table.rows


def _rejects(
    ctx: StepContext, rows: Sequence[Row], reasons: Sequence[str | None]
) -> Iterator[Reject]:
    """Yield each row that leaves, with its source line as schema_validation left it."""
    import pyarrow.parquet as pq

    codes = [reason for reason in reasons if reason is not None]
    if not codes:
        return
    leaving = chosen_of(rows, [reason is not None for reason in reasons])
    with pq.ParquetFile(UNSCRUBBED.fetch(ctx)) as file:
        lines = (
            line
            for batch in file.iter_batches(PART_ROWS, columns=["row_id", "raw"])
            for line in zip(batch["row_id"].to_pylist(), batch["raw"].to_pylist(), strict=True)
        )
        row_id, raw = next(lines)
        for row, reason in zip(leaving, codes, strict=True):
            while row_id != base_id(row.row_id):
                row_id, raw = next(lines)
            yield Reject(row.row_id, ctx.step, reason, row.source_file, row.source_line, raw)
