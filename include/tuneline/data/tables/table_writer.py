"""Write Parquet tables part by part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

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
    """Write a Parquet table part by part; used with `with`.

    Args:
        path: the file.
        names: its columns, which are attributes of the entries.
    """

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
